#include "core/pci.h"

#include "core/base.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES 256

/* The first line of a small file; empty where there is none. */
static void read_line(const char *path, char line[LINE_MAX_BYTES])
{
    FILE *file = fopen(path, "re");
    line[0] = 0;
    if (!file)
        return;
    if (!fgets(line, LINE_MAX_BYTES, file))
        line[0] = 0;
    line[strcspn(line, "\n")] = 0;
    fclose(file);
}

static void read_attribute(const char *root, const char *address, const char *name,
                           char line[LINE_MAX_BYTES])
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/sys/bus/pci/devices/%s/%s", root, address, name);
    line[0] = 0;
    if (length > 0 && (size_t)length < sizeof(path))
        read_line(path, line);
}

/* PCI Express Base Specification 6.0: transfers a second and lane of each generation, in GT/s. */
static uint32_t gen_of(const char *speed)
{
    static const double rates[] = {2.5, 5, 8, 16, 32, 64};
    double rate = strtod(speed, NULL);
    for (uint32_t i = 0; i < ARRAY_COUNT(rates); i++)
        if (rate == rates[i])
            return i + 1;
    return 0;
}

/* What has no link says 255 lanes. */
static uint32_t width_of(const char *text)
{
    unsigned long width = strtoul(text, NULL, 10);
    return width >= 1 && width <= 32 ? (uint32_t)width : 0;
}

struct pci_link pci_link_read(const char *root, const char *address)
{
    char lower[32], line[LINE_MAX_BYTES];
    struct pci_link link;
    size_t used = 0;
    for (; address[used] && used < sizeof(lower) - 1; used++)
        lower[used] = (char)tolower((unsigned char)address[used]);
    lower[used] = 0;
    read_attribute(root, lower, "current_link_speed", line);
    link.gen = gen_of(line);
    read_attribute(root, lower, "current_link_width", line);
    link.width = width_of(line);
    read_attribute(root, lower, "max_link_speed", line);
    link.gen_max = gen_of(line);
    read_attribute(root, lower, "max_link_width", line);
    link.width_max = width_of(line);
    return link;
}

const char *pci_link_text(const struct pci_link *link, char text[PCI_LINK_TEXT_MAX])
{
    bool now = link->gen && link->width, most = link->gen_max && link->width_max;
    if (now && most && (link->gen != link->gen_max || link->width != link->width_max))
        snprintf(text, PCI_LINK_TEXT_MAX, "gen %u x%u (now gen %u x%u)", link->gen_max,
                 link->width_max, link->gen, link->width);
    else if (now || most)
        snprintf(text, PCI_LINK_TEXT_MAX, "gen %u x%u", now ? link->gen : link->gen_max,
                 now ? link->width : link->width_max);
    else
        snprintf(text, PCI_LINK_TEXT_MAX, "link not known");
    return text;
}

void pci_nvidia_driver(const char *root, char version[PCI_DRIVER_MAX])
{
    char path[PATH_MAX], line[LINE_MAX_BYTES];
    version[0] = 0;
    int length = snprintf(path, sizeof(path), "%s/sys/module/nvidia/version", root);
    if (length > 0 && (size_t)length < sizeof(path)) {
        read_line(path, line);
        if (isdigit((unsigned char)line[0]))
            snprintf(version, PCI_DRIVER_MAX, "%.*s", PCI_DRIVER_MAX - 1, line);
    }
}
