/* Linked into a spillway whose CUDA device is the emulated one, for tests of scripts. */
#include "offload/gpu.h"

extern const struct gpu_plugin spillway_gpu_plugin;

static __attribute__((constructor)) void plug_in(void)
{
    gpu_set_plugin(&spillway_gpu_plugin);
}
