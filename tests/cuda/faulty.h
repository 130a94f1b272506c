/*
 * faulty: kernels with one fault each, for test_emulation, and some without that are close to one.
 */
#ifndef SPILLWAY_TESTS_CUDA_FAULTY_H
#define SPILLWAY_TESTS_CUDA_FAULTY_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum faulty_kind {
    FAULTY_NOTHING,           /* barrier and warp barrier where they belong */
    FAULTY_NOTHING_IN_HALVES, /* neighbours read and write halves of a word in place */
    FAULTY_NO_BARRIER,
    FAULTY_NO_SECOND_BARRIER,
    FAULTY_NO_WARP_BARRIER,
    FAULTY_EARLY_EXIT,
    FAULTY_TWO_BARRIERS,
    FAULTY_SHUFFLE_IN_BRANCH,
    FAULTY_SHUFFLE_MASK,
    FAULTY_SHUFFLE_OF_ENDED,
    FAULTY_SHARED_PAST_END,
    FAULTY_DEVICE_PAST_END,
    FAULTY_DEVICE_BEFORE_START,
    FAULTY_FAR_AWAY,
    FAULTY_MISALIGNED,
    FAULTY_UNWRITTEN,
    FAULTY_SHARED_UNWRITTEN,
    FAULTY_HOST_POINTER,
    FAULTY_TWO_BLOCKS,
    FAULTY_COPY_NOT_AWAITED,
    FAULTY_COPY_TO_DEVICE,
    FAULTY_KIND_COUNT
};

struct faulty {
    enum faulty_kind kind;
    float *x;       /* [64] */
    const float *y; /* [64] */
};
cudaError_t faulty_run(const struct faulty *args, cudaStream_t stream);

/* x[i] += scale * y[i], without a fault: for faults in what surrounds it. */
struct faulty_add {
    float *x;
    const float *y;
    float scale;
    uint32_t count;
};
cudaError_t faulty_add_run(const struct faulty_add *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
