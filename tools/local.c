#include "tools/local.h"

#include "core/topo.h"
#include "offload/profile_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int local_profile_path(char path[FILE_PATH_MAX], struct err *err)
{
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    int length;
    if (config && *config)
        length = snprintf(path, FILE_PATH_MAX, "%s/spillway/machine.json", config);
    else if (home && *home)
        length = snprintf(path, FILE_PATH_MAX, "%s/.config/spillway/machine.json", home);
    else
        return err_set(err, ERR_INPUT,
                       "neither HOME nor XDG_CONFIG_HOME is set, so there is no place for this "
                       "machine's profile: name one (bench --out FILE, --machine FILE)");
    if (length >= FILE_PATH_MAX)
        return err_set(err, ERR_INPUT, "the path of the folder for settings is too long");
    return 0;
}

static uint64_t machine_ram_bytes(void)
{
    return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

int local_profile(struct profile *profile, bool *measured, struct err *err)
{
    char path[FILE_PATH_MAX];
    struct err no_home;
    const struct topo *topo = topo_open();
    profile_init(profile, topo->core_count);
    snprintf(profile->cpu.name, sizeof(profile->cpu.name), "%.*s", PROFILE_NAME_MAX - 1,
             topo->cpu_model);
    profile->cpu.l2_bytes = topo->l2_bytes;
    profile->cpu.l3_bytes = topo->l3_bytes;
    profile->ram.bytes = machine_ram_bytes();
    *measured = local_profile_path(path, &no_home) == 0 && file_exists(path);
    return *measured ? profile_load(profile, path, err) : 0;
}
