#include "core/topo.h"
#include "core/base.h"
#include "core/mem.h"
#include <hwloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct topo topo;
static hwloc_topology_t tree;
static hwloc_bitmap_t *cores; /* one hardware thread of each core, preferred cores first */
static bool opened;

/* The efficiency of a core's kind: higher is faster. 0 where the system does not tell. */
static int core_efficiency(hwloc_obj_t core)
{
    int kind = hwloc_cpukinds_get_by_cpuset(tree, core->cpuset, 0);
    int efficiency = 0;
    if (kind < 0 || hwloc_cpukinds_get_info(tree, (unsigned)kind, NULL, &efficiency, NULL, NULL, 0))
        return 0;
    return efficiency;
}

static int compare_cores(const void *left, const void *right)
{
    hwloc_obj_t a = *(const hwloc_obj_t *)left, b = *(const hwloc_obj_t *)right;
    int difference = core_efficiency(b) - core_efficiency(a);
    if (difference != 0)
        return difference;
    return a->logical_index < b->logical_index ? -1 : 1;
}

static void read_cores(void)
{
    /* Machines without core objects (some virtual ones) still have hardware threads. */
    int count = hwloc_get_nbobjs_by_type(tree, HWLOC_OBJ_CORE);
    hwloc_obj_type_t type = count > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
    count = MAX(hwloc_get_nbobjs_by_type(tree, type), 1);
    hwloc_obj_t *objects = mem_alloc((uint64_t)count, sizeof(*objects));
    int found = 0;
    for (int i = 0; i < count; i++) {
        hwloc_obj_t object = hwloc_get_obj_by_type(tree, type, (unsigned)i);
        if (object != NULL && object->cpuset != NULL && !hwloc_bitmap_iszero(object->cpuset))
            objects[found++] = object;
    }
    qsort(objects, (size_t)found, sizeof(*objects), compare_cores);
    cores = mem_alloc((uint64_t)MAX(found, 1), sizeof(*cores));
    for (int i = 0; i < found; i++) {
        cores[i] = hwloc_bitmap_dup(objects[i]->cpuset);
        ASSERT(cores[i] != NULL);
        hwloc_bitmap_singlify(cores[i]);
    }
    mem_free(objects);
    if (found == 0) {
        cores[0] = hwloc_bitmap_alloc();
        ASSERT(cores[0] != NULL);
        hwloc_bitmap_set(cores[0], 0);
    }
    topo.core_count = (uint32_t)MAX(found, 1);
}

static uint64_t cache_bytes(hwloc_obj_type_t type)
{
    hwloc_obj_t cache = hwloc_get_obj_by_type(tree, type, 0);
    return cache != NULL && cache->attr != NULL ? cache->attr->cache.size : 0;
}

static uint32_t *take_cores(hwloc_const_bitmap_t of, uint32_t *count)
{
    uint32_t *list = mem_alloc(topo.core_count, sizeof(*list));
    *count = 0;
    for (uint32_t i = 0; i < topo.core_count; i++)
        if (!of || hwloc_bitmap_isincluded(cores[i], of))
            list[(*count)++] = i;
    return list;
}

/* Caches of no core of ours (a cpuset leaves them in the tree) are passed over. */
static void read_l3(void)
{
    int found = hwloc_get_nbobjs_by_type(tree, HWLOC_OBJ_L3CACHE);
    struct topo_l3 *domains = mem_alloc((uint64_t)MAX(found, 1), sizeof(*domains));
    uint32_t covered = 0;
    for (int i = 0; i < found; i++) {
        hwloc_obj_t cache = hwloc_get_obj_by_type(tree, HWLOC_OBJ_L3CACHE, (unsigned)i);
        struct topo_l3 *domain = &domains[topo.l3_count];
        if (cache == NULL || cache->cpuset == NULL)
            continue;
        domain->bytes = cache->attr->cache.size;
        domain->cores = take_cores(cache->cpuset, &domain->core_count);
        covered += domain->core_count;
        if (domain->core_count > 0)
            topo.l3_count++;
        else
            mem_free((void *)domain->cores);
    }
    if (covered != topo.core_count) {
        for (uint32_t i = 0; i < topo.l3_count; i++)
            mem_free((void *)domains[i].cores);
        domains[0].bytes = 0;
        domains[0].cores = take_cores(NULL, &domains[0].core_count);
        topo.l3_count = 1;
    }
    topo.l3 = domains;
}

void topo_prefer(uint32_t index)
{
    topo_open();
    ASSERT(index < topo.l3_count);
    const struct topo_l3 *first = &topo.l3[index];
    hwloc_bitmap_t *order = mem_alloc(topo.core_count, sizeof(*order));
    uint32_t *number = mem_alloc(topo.core_count, sizeof(*number)); /* the new one of each core */
    uint32_t count = 0;
    for (uint32_t i = 0; i < first->core_count; i++)
        number[first->cores[i]] = ++count; /* 0 is still to come */
    for (uint32_t i = 0; i < topo.core_count; i++) {
        if (number[i] == 0)
            number[i] = ++count;
        order[number[i] - 1] = cores[i];
    }
    ASSERT(count == topo.core_count);
    mem_free(cores);
    cores = order;
    for (uint32_t l3 = 0; l3 < topo.l3_count; l3++) {
        uint32_t *list = (uint32_t *)topo.l3[l3].cores;
        for (uint32_t i = 0; i < topo.l3[l3].core_count; i++)
            list[i] = number[list[i]] - 1;
    }
    mem_free(number);
}

uint64_t topo_l3_bytes(void)
{
    uint64_t bytes = 0;
    topo_open();
    for (uint32_t i = 0; i < topo.l3_count; i++)
        bytes += topo.l3[i].bytes;
    return bytes;
}

static void read_cpu_model(void)
{
    snprintf(topo.cpu_model, sizeof(topo.cpu_model), "unknown CPU");
    hwloc_obj_t package = hwloc_get_obj_by_type(tree, HWLOC_OBJ_PACKAGE, 0);
    const char *model = NULL;
    if (package != NULL)
        model = hwloc_obj_get_info_by_name(package, "CPUModel");
    if (model == NULL)
        model = hwloc_obj_get_info_by_name(hwloc_get_root_obj(tree), "CPUModel");
    if (model != NULL)
        snprintf(topo.cpu_model, sizeof(topo.cpu_model), "%s", model);
}

const struct topo *topo_open(void)
{
    if (opened)
        return &topo;
    if (hwloc_topology_init(&tree) != 0 || hwloc_topology_load(tree) != 0)
        fatal("hwloc cannot read this machine's topology; is /sys mounted?");
    read_cores();
    topo.thread_count = (uint32_t)MAX(hwloc_get_nbobjs_by_type(tree, HWLOC_OBJ_PU), 1);
    topo.node_count = (uint32_t)MAX(hwloc_get_nbobjs_by_type(tree, HWLOC_OBJ_NUMANODE), 1);
    topo.l2_bytes = cache_bytes(HWLOC_OBJ_L2CACHE);
    topo.l3_bytes = cache_bytes(HWLOC_OBJ_L3CACHE);
    read_l3();
    read_cpu_model();
    opened = true;
    return &topo;
}

int topo_bind_thread(uint32_t index)
{
    topo_open();
    return hwloc_set_cpubind(tree, cores[index % topo.core_count], HWLOC_CPUBIND_THREAD) == 0 ? 0
                                                                                              : -1;
}

int topo_unbind_thread(void)
{
    topo_open();
    return hwloc_set_cpubind(tree, hwloc_topology_get_topology_cpuset(tree),
                             HWLOC_CPUBIND_THREAD) == 0
               ? 0
               : -1;
}

/* ---- PCI ------------------------------------------------------------------------------------- */

/* PCI's classes: base class, or class and subclass. */
#define CLASS_DISPLAY     0x03
#define CLASS_ACCELERATOR 0x12
#define CLASS_NVME        0x0108

static const char *device_kind(uint16_t class)
{
    if (class == CLASS_NVME)
        return "NVMe drive";
    if (class >> 8 == CLASS_DISPLAY)
        return "GPU";
    return class >> 8 == CLASS_ACCELERATOR ? "accelerator" : NULL;
}

static void describe_device(struct topo_device *device, hwloc_topology_t from, hwloc_obj_t object)
{
    const struct hwloc_pcidev_attr_s *pci = &object->attr->pcidev;
    const char *vendor = hwloc_obj_get_info_by_name(object, "PCIVendor");
    const char *name = hwloc_obj_get_info_by_name(object, "PCIDevice");
    hwloc_obj_t near = hwloc_get_non_io_ancestor_obj(from, object);
    *device = (struct topo_device){.link_bytes_per_s = pci->linkspeed * 1e9, .node = -1};
    snprintf(device->kind, sizeof(device->kind), "%s", device_kind(pci->class_id));
    snprintf(device->bus, sizeof(device->bus), "%04x:%02x:%02x.%x", (unsigned)pci->domain, pci->bus,
             pci->dev, pci->func);
    if (vendor != NULL || name != NULL)
        snprintf(device->name, sizeof(device->name), "%s%s%s", vendor != NULL ? vendor : "",
                 vendor != NULL && name != NULL ? " " : "", name != NULL ? name : "");
    else
        snprintf(device->name, sizeof(device->name), "%04x:%04x", pci->vendor_id, pci->device_id);
    /* Near all nodes is near none. */
    if (near != NULL && near->nodeset != NULL && hwloc_bitmap_weight(near->nodeset) == 1)
        device->node = hwloc_bitmap_first(near->nodeset);
}

uint32_t topo_devices(struct topo_device *devices, uint32_t max)
{
    hwloc_topology_t with_io;
    uint32_t count = 0;
    if (hwloc_topology_init(&with_io) != 0)
        return 0;
    hwloc_topology_set_io_types_filter(with_io, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    bool loaded = hwloc_topology_load(with_io) == 0;
    for (hwloc_obj_t object = NULL;
         loaded && (object = hwloc_get_next_pcidev(with_io, object)) != NULL;) {
        if (device_kind(object->attr->pcidev.class_id) == NULL)
            continue;
        if (count < max)
            describe_device(&devices[count], with_io, object);
        count++;
    }
    hwloc_topology_destroy(with_io);
    return count;
}

int topo_bind_memory(void *address, size_t bytes)
{
    topo_open();
    ASSERT(address != NULL);
    return hwloc_set_area_membind(tree, address, bytes, cores[0], HWLOC_MEMBIND_BIND, 0) == 0 ? 0
                                                                                              : -1;
}
