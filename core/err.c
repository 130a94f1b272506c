#include "core/err.h"
#include "core/base.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int err_set(struct err *err, int code, const char *format, ...)
{
    ASSERT(err != NULL);
    ASSERT(code < 0);
    va_list arguments;
    va_start(arguments, format);
    err->code = code;
    vsnprintf(err->message, sizeof(err->message), format, arguments);
    va_end(arguments);
    return code;
}

int err_set_errno(struct err *err, int errno_value, const char *format, ...)
{
    ASSERT(err != NULL);
    va_list arguments;
    va_start(arguments, format);
    err->code = ERR_SYSTEM;
    vsnprintf(err->message, sizeof(err->message), format, arguments);
    va_end(arguments);
    char text[128];
    size_t used = strlen(err->message);
    snprintf(err->message + used, sizeof(err->message) - used, ": %s",
             strerror_r(errno_value, text, sizeof(text)));
    return ERR_SYSTEM;
}

_Noreturn void fatal(const char *format, ...)
{
    /* Formatted on the stack and written by one call: another thread may hold stderr's lock and
     * never let go of it, and the heap may be what has just failed. */
    char line[1200] = "spillway: ";
    size_t used = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + used, sizeof(line) - used - 1, format, arguments);
    va_end(arguments);
    used = strlen(line);
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written;
    _exit(1);
}
