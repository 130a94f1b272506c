/* CUDA's functions for the device itself, and for memory of the host that is pinned later; the lock
 * that makes each call whole. */
#include "internal.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define CARD_BYTES     ((size_t)24 << 30)
#define REGISTERED_MAX 16

/* -- The lock -- */

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

void call_lock(void)
{
    pthread_mutex_lock(&lock);
}

void call_unlock(const int *unused)
{
    (void)unused;
    pthread_mutex_unlock(&lock);
}

/* -- The device -- */

cudaError_t cudaGetDeviceCount(int *count)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    *count = error ? 0 : 1;
    return error;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    if (device != 0)
        return cudaErrorInvalidValue;
    *prop = (struct cudaDeviceProp){.major = 8,
                                    .minor = 6,
                                    .multiProcessorCount = 28,
                                    .pciBusID = 1,
                                    .integrated = 1}; /* its memory is the host's */
    snprintf(prop->name, sizeof(prop->name), "emulated card");
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    return error ? error : device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

/* What has been taken is not counted: only that there is enough. */
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    *free_bytes = *total_bytes = error ? 0 : CARD_BYTES;
    return error;
}

/* -- Memory that is pinned later -- */

static struct allocation registered[REGISTERED_MAX]; /* base 0: none */
static uint32_t registered_end;                      /* none from here on */

static uint32_t find_registered(const void *memory)
{
    uint32_t i = 0;
    while (i < REGISTERED_MAX && registered[i].base != (uintptr_t)memory)
        i++;
    return i;
}

bool memory_is_any_registered(void)
{
    for (uint32_t i = 0; i < registered_end; i++)
        if (registered[i].base)
            return true;
    return false;
}

struct allocation *memory_registered(uintptr_t address)
{
    for (uint32_t i = 0; i < registered_end; i++)
        if (address - registered[i].base < registered[i].bytes)
            return &registered[i];
    return NULL;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned int flags)
{
    CALL_LOCK;
    (void)flags;
    cudaError_t error = call_begin(cudaErrorMemoryAllocation);
    uint32_t i = find_registered(NULL);
    if (error)
        return error;
    if (!memory || !bytes || i == REGISTERED_MAX || find_registered(memory) < REGISTERED_MAX)
        return cudaErrorInvalidValue;
    registered[i] = (struct allocation){.base = (uintptr_t)memory, .bytes = bytes, .written = true};
    if (i >= registered_end)
        registered_end = i + 1;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    CALL_LOCK;
    uint32_t i = find_registered(memory);
    if (!memory || i == REGISTERED_MAX)
        return cudaErrorInvalidValue;
    /* As with cudaFree: what is queued may still use it. */
    cudaError_t error = emulation_fault_count() ? cudaSuccess : cudaDeviceSynchronize();
    memory_forget(&registered[i]);
    registered[i] = (struct allocation){0};
    return error;
}
