//! System calls without libc: they leave `errno` alone, which a child that runs in its parent's memory
//! shares with it.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

/// Makes a system call; an error is its negative number.
///
/// # Safety
/// As the call itself: pointers among the arguments must be what it takes.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn call(number: libc::c_long, args: [usize; 4]) -> isize {
    let result: isize;
    // SAFETY: the caller answers for the arguments; these are the registers of the kernel's convention,
    // of which it changes rax, rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes a system call; an error is its negative number.
///
/// # Safety
/// As above. It does change `errno`: the parent has to wait for the child.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn call(number: libc::c_long, args: [usize; 4]) -> isize {
    // SAFETY: the caller answers for the arguments.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3]) };
    if result < 0 { -(nix::errno::Errno::last_raw() as isize) } else { result as isize }
}
