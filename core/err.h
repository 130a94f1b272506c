/*
 * err: what went wrong, where, and what to do about it, as one sentence for the user.
 *
 * A function that can meet bad input takes a `struct err *` (never NULL) as its last argument and
 * returns 0, or a negative code after filling it. fatal() is for a broken environment (EIO,
 * corruption): one sentence on stderr and exit 1, legal at any time because the disk always holds a
 * complete commit. Refuses: chains and stacks of errors; the first one is told.
 */
#ifndef SPILLWAY_CORE_ERR_H
#define SPILLWAY_CORE_ERR_H

enum err_code {
    ERR_NONE = 0,
    ERR_USAGE = -2,   /* the command line; exit status 2 */
    ERR_INPUT = -1,   /* a file, a budget, a model: exit status 1 */
    ERR_SYSTEM = -3,  /* a system call failed: exit status 1 */
    ERR_CORRUPT = -4, /* a checksum or a header is wrong: exit status 1 */
};

struct err {
    int code;           /* enum err_code */
    char message[1024]; /* one sentence, no newline */
};

/* Fills *err and returns code, so that `return err_set(err, ERR_INPUT, "...", ...)` reads well. */
int err_set(struct err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As err_set with code ERR_SYSTEM, appending ": " and the text of errno_value. */
int err_set_errno(struct err *err, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Prints "spillway: " and the sentence to stderr and exits with status 1 by _exit: no destructors
 * run, since other threads may be in the middle of anything. */
_Noreturn void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
