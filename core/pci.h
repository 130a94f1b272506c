/*
 * pci: what the kernel tells of a PCI device's link, below /sys, and which NVIDIA driver it has.
 * Pure but for reading these files; what is not there is not known. Called by tools/devices.c.
 */
#ifndef SPILLWAY_CORE_PCI_H
#define SPILLWAY_CORE_PCI_H

#include <stddef.h>
#include <stdint.h>

/* Generation and lanes of its link as it is now, and as device and slot can have it; 0: not known.
 * A card that has nothing to do goes down to a lower generation. */
struct pci_link {
    uint32_t gen, width, gen_max, width_max;
};

/* address: "0000:01:00.0", of any case. root: "" for this machine; tests give a folder. */
struct pci_link pci_link_read(const char *root, const char *address);

/* "gen 4 x16", "gen 4 x16 (now gen 1 x16)" or "link not known"; returns text. */
#define PCI_LINK_TEXT_MAX 64
const char *pci_link_text(const struct pci_link *link, char text[PCI_LINK_TEXT_MAX]);

/* "580.95.05", or "" where there is no such driver or it does not tell. */
#define PCI_DRIVER_MAX 32
void pci_nvidia_driver(const char *root, char version[PCI_DRIVER_MAX]);

#endif
