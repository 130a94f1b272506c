#include "tools/commands.h"

#include "core/err.h"

#include <stdio.h>

int commands_status(int result, const struct err *err)
{
    if (result >= 0)
        return 0;
    fprintf(stderr, "spillway: %s\n", err->message);
    return result == ERR_USAGE ? 2 : 1;
}
