/* Loaded into user-mode-linux, whose buffer for the registers of a guest's process ends before the
 * state that processors with AMX have: the kernel cuts off what it hands out, and refuses to take
 * back anything but the whole, so there is no boot. Here the rest is put back on the way: nothing,
 * as no program uses AMX without having asked the kernel. Elsewhere all passes through. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NT_X86_XSTATE 0x202 /* from <linux/elf.h> */

static unsigned char state[1 << 16];
static size_t whole;

long ptrace(enum __ptrace_request request, ...)
{
    va_list rest;
    va_start(rest, request);
    pid_t pid = va_arg(rest, pid_t);
    void *addr = va_arg(rest, void *);
    struct iovec *theirs = va_arg(rest, void *);
    va_end(rest);

    struct iovec ours = { state, sizeof state };
    if ((long)addr != NT_X86_XSTATE) {
        long word, result;
        if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
            return syscall(SYS_ptrace, request, pid, addr, theirs);
        /* The C library returns what the kernel writes. */
        result = syscall(SYS_ptrace, request, pid, addr, &word);
        return result < 0 ? result : word;
    }
    if (request == PTRACE_GETREGSET) {
        long result = syscall(SYS_ptrace, request, pid, addr, &ours);
        if (result == 0) {
            whole = ours.iov_len;
            if (theirs->iov_len > whole)
                theirs->iov_len = whole;
            memcpy(theirs->iov_base, state, theirs->iov_len);
        }
        return result;
    }
    if (request == PTRACE_SETREGSET && theirs->iov_len < whole) {
        memset(state, 0, whole);
        memcpy(state, theirs->iov_base, theirs->iov_len);
        ours.iov_len = whole;
        theirs = &ours;
    }
    return syscall(SYS_ptrace, request, pid, addr, theirs);
}
