/* devices: what there is to compute on, and what --device chooses of it. */
#include "tools/devices.h"

#include "core/args.h"
#include "core/log.h"
#include "core/topo.h"
#include "offload/gpu.h"
#include "tools/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define DEVICES_MAX 64

static int choose_card(uint32_t number, struct train_settings *settings, struct err *err)
{
    if (!gpu_find(number, err))
        return err->code;
    settings->cuda = true;
    settings->cuda_device = number;
    return 0;
}

const char *devices_name(const char *word)
{
    return strcmp(word, "cuda") == 0 ? "cuda:0" : word;
}

int devices_choose(const char *word, struct train_settings *settings, const char **name,
                   struct err *err)
{
    settings->cuda = false;
    *name = devices_name(word);
    if (strcmp(word, "cpu") == 0)
        return 0;
    if (strcmp(word, "auto") == 0) {
        struct err none;
        bool card = gpu_has_driver() && choose_card(0, settings, &none) == 0;
        *name = card ? "cuda:0" : "cpu";
        return 0;
    }
    char *end = NULL;
    bool numbered = strncmp(*name, "cuda:", 5) == 0;
    unsigned long number = numbered ? strtoul(*name + 5, &end, 10) : 0;
    if (!numbered || end == *name + 5 || *end || number >= DEVICES_MAX)
        return err_set(err, ERR_USAGE, "--device is '%s'; it may be: auto, cpu, cuda, cuda:N",
                       word);
    return choose_card((uint32_t)number, settings, err);
}

#define PCI_MAX 64

/* What hwloc knows of the card: its NUMA node and its link as it is now, into text. */
static void describe_link(const char *pci, char *text, size_t bytes)
{
    struct topo_device devices[PCI_MAX];
    uint32_t count = topo_devices(devices, PCI_MAX);
    text[0] = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (strcasecmp(devices[i].bus, pci) != 0)
            continue;
        char rate[LOG_BYTES_MAX];
        size_t used = 0;
        if (devices[i].link_bytes_per_s > 0)
            used = (size_t)snprintf(text, bytes, ", link %s/s",
                                    log_bytes(rate, (uint64_t)devices[i].link_bytes_per_s));
        if (devices[i].node >= 0)
            snprintf(text + used, bytes - used, ", NUMA node %d", devices[i].node);
    }
}

static int print_card(const struct gpu_plugin *plugin, uint32_t number, struct err *err)
{
    struct gpu_info info;
    char vram[LOG_BYTES_MAX], rest[LOG_BYTES_MAX], link[96];
    int result = plugin->info(number, &info, err);
    if (result)
        return result;
    describe_link(info.pci, link, sizeof(link));
    printf(
        "cuda:%u  %s: %s, %s free; compute capability %u.%u, %u processors; PCI %s%s; driver for "
        "CUDA %d.%d, built with %d.%d\n",
        number, info.name, log_bytes(vram, info.vram_bytes), log_bytes(rest, info.free_bytes),
        info.major, info.minor, info.processors, info.pci, link, info.driver / 1000,
        info.driver % 1000 / 10, info.runtime / 1000, info.runtime % 1000 / 10);
    return 0;
}

static int print_devices(struct err *err)
{
    const struct topo *topo = topo_open();
    struct err why = {0};
    printf("cpu     %s: %u cores\n", topo->cpu_model, topo->core_count);
    const struct gpu_plugin *plugin = gpu_load(&why);
    uint32_t count = plugin ? plugin->count(&why) : 0;
    if (!count)
        printf("cuda    none: %s\n", why.message);
    int result = 0;
    for (uint32_t i = 0; i < count && result == 0; i++)
        result = print_card(plugin, i, err);
    return result;
}

int devices_main(int argc, char **argv)
{
    struct args_command args = {
        .name = "devices",
        .summary = "Lists what --device may be: the CPU, and the CUDA devices of this machine.",
        .usage = "",
        .example = "spillway devices",
    };
    struct err err = {0};
    int result = args_parse(&args, argc, argv, &err);
    if (result == 0)
        result = print_devices(&err);
    return commands_status(result, &err);
}
