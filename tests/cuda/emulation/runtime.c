/* CUDA's functions for memory: allocations, copies, and the names of errors. */
#include "internal.h"
#include <string.h>

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
        if (errors[i].error == error)
            return errors[i].name;
    return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
        if (errors[i].error == error)
            return errors[i].text;
    return "unknown error";
}

/* -- Allocations -- */

static cudaError_t take(void **memory, size_t bytes, bool device)
{
    *memory = NULL;
    cudaError_t error =
        call_begin_of(device ? "cudaMalloc" : "cudaMallocHost", cudaErrorMemoryAllocation);
    if (error)
        return error;
    struct allocation *allocation = memory_take(bytes, device);
    if (!allocation)
        return cudaErrorMemoryAllocation;
    *memory = (void *)allocation->base;
    return cudaSuccess;
}

static cudaError_t release(void *memory, bool device)
{
    if (!memory)
        return cudaSuccess;
    struct allocation *allocation = memory_find((uintptr_t)memory);
    if (!allocation || allocation->freed || allocation->device != device ||
        allocation->base != (uintptr_t)memory) {
        char where[200];
        memory_describe((uintptr_t)memory, where, sizeof(where));
        emulation_fault("bad-free", "%s", where);
        return cudaErrorInvalidValue;
    }
    /* As on a GPU, where cudaFree waits for all that is queued. After a fault nothing runs. */
    cudaError_t error = emulation_fault_count() ? cudaSuccess : cudaDeviceSynchronize();
    memory_free(allocation);
    return error;
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    CALL_LOCK;
    return take(memory, bytes, true);
}

cudaError_t cudaFree(void *memory)
{
    CALL_LOCK;
    return release(memory, true);
}

cudaError_t cudaMallocHost(void **memory, size_t bytes)
{
    CALL_LOCK;
    return take(memory, bytes, false);
}

cudaError_t cudaFreeHost(void *memory)
{
    CALL_LOCK;
    return release(memory, false);
}

/* -- Copies -- */

struct copy {
    void *to;
    const void *from;
    size_t bytes;
    int value;
    bool down;
};

static bool check_side(const void *memory, size_t bytes, bool device, const char *what)
{
    const struct allocation *a = memory_find((uintptr_t)memory);
    char where[200];
    memory_describe((uintptr_t)memory, where, sizeof(where));
    if (a && a->freed)
        emulation_fault("use-after-free", "%s: %s", what, where);
    else if ((a && a->device) != device)
        emulation_fault("copy", "%s is not on the side that the kind of copy says: %s", what,
                        where);
    else if (a && ((uintptr_t)memory < a->base || (uintptr_t)memory + bytes > a->base + a->bytes))
        emulation_fault("out-of-bounds", "%s of %zu bytes at %s", what, bytes, where);
    else
        return true;
    return false;
}

static void run_copy(void *context)
{
    const struct copy *copy = context;
    if (copy->down)
        detector_copied_down(copy->from, copy->bytes, current_op);
    else
        detector_range(copy->from, copy->bytes, false, current_op);
    memmove(copy->to, copy->from, copy->bytes);
    detector_range(copy->to, copy->bytes, true, current_op);
}

static void run_set(void *context)
{
    const struct copy *copy = context;
    memset(copy->to, copy->value, copy->bytes);
    detector_range(copy->to, copy->bytes, true, current_op);
}

static bool reads_device(cudaMemcpyKind kind)
{
    return kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
}

static bool writes_device(cudaMemcpyKind kind)
{
    return kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    const void *host = reads_device(kind) ? to : from;
    if (kind != cudaMemcpyDeviceToDevice && !memory_find((uintptr_t)host))
        emulation_fault("pageable", "a copy of memory that is not pinned is not asynchronous");
    else if (check_side(to, bytes, writes_device(kind), "a copy's destination") &&
             check_side(from, bytes, reads_device(kind), "a copy's source")) {
        struct copy copy = {to, from, bytes, 0, kind == cudaMemcpyDeviceToHost};
        return stream_enqueue(stream, kind == cudaMemcpyHostToDevice ? "a copy up" : "a copy down",
                              run_copy, &copy, sizeof(copy));
    }
    return cudaErrorInvalidValue;
}

/* For tests: all that is queued runs before it. */
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (!error)
        error = cudaDeviceSynchronize();
    if (error)
        return error;
    if (!check_side(to, bytes, writes_device(kind), "a copy's destination") ||
        !check_side(from, bytes, reads_device(kind), "a copy's source"))
        return cudaErrorInvalidValue;
    uint32_t op = op_of_host();
    detector_range(from, bytes, false, op);
    memmove(to, from, bytes);
    detector_range(to, bytes, true, op);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    if (!check_side(memory, bytes, true, "a set's destination"))
        return cudaErrorInvalidValue;
    struct copy copy = {.to = memory, .bytes = bytes, .value = value};
    return stream_enqueue(stream, "a set", run_set, &copy, sizeof(copy));
}
