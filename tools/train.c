/* spillway train: see offload/train.h. */
#include "tools/commands.h"
#include "tools/options.h"

#include <stdio.h>

int train_main(int argc, char **argv)
{
    struct options options;
    struct train_settings settings;
    struct err err = {0};
    int result = options_parse(&options, OPTIONS_TRAIN, argc, argv, &settings, &err);
    if (result == 0)
        result = train_run(&settings, &err);
    options_deinit(&options);
    return commands_status(result, &err);
}
