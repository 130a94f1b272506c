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

int topo_bind_memory(void *address, size_t bytes)
{
    topo_open();
    ASSERT(address != NULL);
    return hwloc_set_area_membind(tree, address, bytes, cores[0], HWLOC_MEMBIND_BIND, 0) == 0 ? 0
                                                                                              : -1;
}
