/*
 * What tests set and ask of the emulation, in the real flavour, where there is a card instead:
 * nothing is drawn, nothing is left out, and faults are the card's to tell, as errors of the calls
 * that come after. The first case to begin ends the program where there is no card.
 */
#include "tests/cuda/emulation/emulation.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

const bool emulation_is_checked = false;
const bool emulation_is_here = false;

static void require_card(void)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (!error && count > 0)
        return;
    fflush(NULL);
    fprintf(stderr, "there is no CUDA device here to test on: %s (%s)\n",
            error ? cudaGetErrorString(error) : "none is found", cudaGetErrorName(error));
    _Exit(1);
}

void emulation_reset(uint64_t seed)
{
    static bool required;
    (void)seed;
    if (!required)
        require_card();
    required = true;
}

/* What no call has returned yet. */
uint32_t emulation_fault_count(void)
{
    return cudaDeviceSynchronize() != cudaSuccess || cudaGetLastError() != cudaSuccess;
}

const char *emulation_first_fault(void)
{
    cudaError_t error = cudaDeviceSynchronize();
    return error ? cudaGetErrorString(error) : "";
}

void emulation_set_quiet(bool quiet)
{
    (void)quiet;
}

void emulation_fail_call(uint32_t n)
{
    (void)n;
}

void emulation_fail_call_of(const char *name, uint32_t n)
{
    (void)name;
    (void)n;
}

uint32_t emulation_call_count(const char *name)
{
    (void)name;
    return 0;
}

void emulation_only_last_blocks(uint32_t blocks)
{
    (void)blocks;
}

void emulation_only_first_block(bool only)
{
    (void)only;
}
