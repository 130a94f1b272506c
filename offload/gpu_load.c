#include "offload/gpu.h"

#include "io/file.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct gpu_plugin *loaded, *given;

void gpu_set_plugin(const struct gpu_plugin *plugin)
{
    given = plugin;
}

bool gpu_has_driver(void)
{
    /* Linux, and Windows' subsystem for it. */
    return file_exists("/dev/nvidiactl") || file_exists("/dev/dxg");
}

/* Beside the program, wherever that lies. */
static int plugin_path(char path[FILE_PATH_MAX], struct err *err)
{
    char program[PATH_MAX];
    ssize_t bytes = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (bytes <= 0)
        return err_set(err, ERR_SYSTEM, "cannot find where this program lies: is /proc mounted?");
    program[bytes] = 0;
    *strrchr(program, '/') = 0;
    return file_join(path, program, GPU_PLUGIN_FILE, err);
}

const struct gpu_plugin *gpu_load(struct err *err)
{
    char path[FILE_PATH_MAX];
    if (given || loaded)
        return given ? given : loaded;
    if (plugin_path(path, err))
        return NULL;
    if (!file_exists(path)) {
        err_set(err, ERR_INPUT,
                "this build has no CUDA part: there is no %s; install the CUDA toolkit (nvcc) and "
                "run make again",
                path);
        return NULL;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const struct gpu_plugin *plugin = library ? dlsym(library, GPU_PLUGIN_SYMBOL) : NULL;
    if (!plugin) {
        err_set(err, ERR_INPUT, "the CUDA part cannot be loaded: %s", dlerror());
        return NULL;
    }
    if (plugin->version != GPU_PLUGIN_VERSION) {
        err_set(err, ERR_INPUT, "%s belongs to another version of spillway: run make again", path);
        return NULL;
    }
    return loaded = plugin;
}

const struct gpu_plugin *gpu_find(uint32_t number, struct err *err)
{
    const struct gpu_plugin *plugin = gpu_load(err);
    uint32_t count = plugin ? plugin->count(err) : 0;
    if (number < count)
        return plugin;
    if (count)
        err_set(err, ERR_INPUT, "--device cuda:%u: there are %u CUDA devices here, from cuda:0 on",
                number, count);
    return NULL;
}
