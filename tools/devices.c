/* devices: what there is to compute on, and what --device chooses of it. */
#include "tools/devices.h"

#include "core/args.h"
#include "core/log.h"
#include "core/pci.h"
#include "core/topo.h"
#include "offload/gpu.h"
#include "tools/commands.h"
#include "tools/machine.h"

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

int devices_card(const struct train_settings *settings, const struct profile *profile,
                 struct profile_device *card, struct err *err)
{
    struct gpu_info info;
    const struct gpu_plugin *plugin = gpu_find(settings->cuda_device, err);
    int result = plugin ? plugin->info(settings->cuda_device, &info, err) : err->code;
    if (result)
        return result;
    if (profile->card.point_count && strcmp(profile->card.name, info.name) == 0) {
        *card = profile->card;
        log_line("predictions begin from this machine's profile of the %s", info.name);
        return 0;
    }
    const char *part = machine_card(info.name, info.vram_bytes, card);
    if (part)
        log_line("predictions begin from the known figures of %s (data sheets and measurements of "
                 "others); 'spillway bench pcie' and 'bench compute --device cuda' with --out "
                 "measure this one",
                 part);
    else
        log_line(
            "no figures of the %s are known: predictions begin from a card of the middle "
            "class; 'spillway bench pcie' and 'bench compute --device cuda' with --out measure "
            "it",
            info.name);
    return part ? 0 : 1;
}

#define PCI_MAX 64

/* By hwloc. -1: all nodes are alike, or hwloc does not see the card. */
static int32_t node_of(const char *pci)
{
    struct topo_device devices[PCI_MAX];
    uint32_t count = MIN(topo_devices(devices, PCI_MAX), (uint32_t)PCI_MAX);
    for (uint32_t i = 0; i < count; i++)
        if (strcasecmp(devices[i].bus, pci) == 0)
            return devices[i].node;
    return -1;
}

static int print_card(const struct gpu_plugin *plugin, uint32_t number, struct err *err)
{
    struct gpu_info info;
    char vram[LOG_BYTES_MAX], rest[LOG_BYTES_MAX], link_text[PCI_LINK_TEXT_MAX];
    char node[32] = "all NUMA nodes alike", driver[PCI_DRIVER_MAX];
    int result = plugin->info(number, &info, err);
    if (result)
        return result;
    const struct pci_link link = pci_link_read("", info.pci);
    int32_t numa = node_of(info.pci);
    if (numa >= 0)
        snprintf(node, sizeof(node), "NUMA node %d", numa);
    pci_nvidia_driver("", driver);
    printf("cuda:%u  %s: %s, %s free; compute capability %u.%u, %u processors; PCI %s, %s, %s; "
           "driver %s%sfor CUDA %d.%d, built with %d.%d\n",
           number, info.name, log_bytes(vram, info.vram_bytes), log_bytes(rest, info.free_bytes),
           info.major, info.minor, info.processors, info.pci, pci_link_text(&link, link_text), node,
           driver, driver[0] ? " " : "", info.driver / 1000, info.driver % 1000 / 10,
           info.runtime / 1000, info.runtime % 1000 / 10);
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
