//! The program's own text and constants in this process's memory.

use std::io;

use nix::errno::Errno;

/// Lets go of the pages of the program that were read so far, which nothing ever writes to: they stay in
/// the page cache, for all shims, and what is needed again is mapped again by some tens of faults.
///
/// Data that can be written are left as they are.
///
/// # Errors
/// Those of madvise(2).
pub(crate) fn let_go() -> io::Result<()> {
    for (start, length) in constant_segments() {
        // SAFETY: the pages lie in a segment of the program that is mapped without the right to write, so
        // they are as the file has them, and come back from there.
        let result = unsafe { libc::madvise(start as *mut _, length, libc::MADV_DONTNEED) };
        Errno::result(result)?;
    }
    Ok(())
}

/// Where the segments that cannot be written lie: the whole pages, and their length in bytes.
fn constant_segments() -> Vec<(usize, usize)> {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let Some(page) = page.and_then(|page| usize::try_from(page).ok()) else { return Vec::new() };
    let headers = headers();
    // A program may lie elsewhere than where it was linked to.
    let linked = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    let Some(linked) = linked.map(|header| header.p_vaddr as usize) else { return Vec::new() };
    let offset = (headers.as_ptr() as usize).wrapping_sub(linked);
    let is_constant = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    let range = |header: &libc::Elf64_Phdr| {
        let start = offset.wrapping_add(header.p_vaddr as usize);
        let (first, end) = (start.next_multiple_of(page), start + header.p_memsz as usize);
        (first, (end / page * page).saturating_sub(first))
    };
    headers.iter().filter(is_constant).map(range).collect()
}

/// The program's headers, as the kernel has mapped them.
fn headers() -> &'static [libc::Elf64_Phdr] {
    // SAFETY: it reads what the kernel has put on the stack, and cannot fail but by a zero.
    let at = |kind| unsafe { libc::getauxval(kind) };
    let (start, count) = (at(libc::AT_PHDR), at(libc::AT_PHNUM));
    if start == 0 || at(libc::AT_PHENT) != size_of::<libc::Elf64_Phdr>() as libc::c_ulong {
        return &[];
    }
    // SAFETY: the kernel says that so many headers of this size are there, in a segment that nothing writes
    // to or unmaps.
    unsafe { std::slice::from_raw_parts(start as *const libc::Elf64_Phdr, count as usize) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_cannot_be_written_is_let_go_and_all_of_it_comes_back() {
        static CHANGED: std::sync::Mutex<u32> = std::sync::Mutex::new(1);
        *CHANGED.lock().unwrap() = 2;
        let segments = constant_segments();
        let text = let_go as fn() -> io::Result<()> as usize;
        let holds = |place: usize| {
            segments.iter().any(|&(start, len)| (start..start + len).contains(&place))
        };
        assert!(holds(text), "{segments:x?}");
        assert!(!holds(&raw const CHANGED as usize), "{segments:x?}");
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().contains('w')) {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let place = |hex| usize::from_str_radix(hex, 16).unwrap();
            let (start, end) = (place(start), place(end));
            assert!(segments.iter().all(|&(at, len)| at + len <= start || end <= at), "{line}");
        }
        let_go().unwrap();
        assert_eq!(*CHANGED.lock().unwrap(), 2);
    }
}
