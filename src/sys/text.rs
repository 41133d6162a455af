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
    let (offset, headers) = program();
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

/// How far the program lies from where it was linked to, and its headers.
///
/// The kernel tells where the headers are, but not where they were to be: of a static program GNU ld does not
/// say that either (`PT_PHDR`). libc knows, and [tells] of the program before all else.
///
/// [tells]: https://man7.org/linux/man-pages/man3/dl_iterate_phdr.3.html
fn program() -> (usize, &'static [libc::Elf64_Phdr]) {
    let mut found = (0, &[][..]);
    // SAFETY: `note` takes what it is called with, and the last argument for what it is.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut found).cast()) };
    found
}

/// Notes the first of what is loaded at `found`, as [`program`] returns it.
///
/// # Safety
/// It is for dl_iterate_phdr(3), with that pointer.
unsafe extern "C" fn note(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    found: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the struct lives as long as the call, and has had these fields ever since. The headers of the
    // program are in a segment that nothing writes to or unmaps.
    let program = unsafe {
        let (at, count) = ((*info).dlpi_phdr, usize::from((*info).dlpi_phnum));
        ((*info).dlpi_addr as usize, std::slice::from_raw_parts(at, count))
    };
    // SAFETY: `program` passes a pointer to such a pair, which is there until all calls have returned.
    unsafe { *found.cast::<(usize, &[libc::Elf64_Phdr])>() = program };
    1 // that is all
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
