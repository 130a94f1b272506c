/*
 * ptx: every PTX instruction that the project uses, one function each, with its meaning in plain
 * C++ for the emulation. Needs sm_80 (PTX ISA 7.0: "Data movement and conversion instructions:
 * cp.async", "Warp level matrix instructions": ldmatrix, mma.m16n8k16).
 *
 * Fragments, for lane l with g = l / 4 and t = l % 4, two bf16 a register, the lower one first:
 *   A [16, 16]  a[0]: row g, columns 2t, 2t+1; a[1]: row g+8; a[2], a[3]: the same 8 columns on
 *   B [16, 8]   b[0]: rows 2t, 2t+1 of column g; b[1]: 8 rows on
 *   D [16, 8]   row g, columns 2t and 2t+1; then row g+8
 */
#ifndef SPILLWAY_MODEL_CUDA_PTX_CUH
#define SPILLWAY_MODEL_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <stdint.h>

#ifndef SPILLWAY_EMULATION

static __device__ __forceinline__ uint32_t ptx_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* D += A B. d: row g's pair, then row g+8's. */
static __device__ __forceinline__ void ptx_mma(float &d0, float &d1, float &d2, float &d3,
                                               const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices of bf16; lanes 8i to 8i+7 give the addresses of matrix i's rows, 16 bytes
 * each and aligned so. Lane l gets elements 2t and 2t+1 of row g of each. */
static __device__ __forceinline__ void ptx_load_matrices(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(ptx_shared_address(row))
                 : "memory");
}

/* The same, each matrix transposed. */
static __device__ __forceinline__ void ptx_load_transposed(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(ptx_shared_address(row))
                 : "memory");
}

/* 16 bytes into shared memory, later; zeros where valid is false, and then global is not read. */
static __device__ __forceinline__ void ptx_copy_async(void *shared, const void *global, bool valid)
{
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(ptx_shared_address(shared)),
        "l"(global), "r"(valid ? 16 : 0)
        : "memory");
}

static __device__ __forceinline__ void ptx_copy_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* Until all but the last GROUPS_LEFT committed groups of this thread have landed. */
template <int GROUPS_LEFT> static __device__ __forceinline__ void ptx_copy_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(GROUPS_LEFT) : "memory");
}

#else

struct ptx_mma_lane {
    float *d[4];
    const uint32_t *a;
    uint32_t b[2];
};

static inline float ptx_half(uint32_t pair, int which)
{
    return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}

static inline void ptx_mma_all(void *const *lanes, unsigned int mask)
{
    float a[16][16], b[16][8];
    (void)mask;
    for (int l = 0; l < 32; l++) {
        const ptx_mma_lane *lane = static_cast<const ptx_mma_lane *>(lanes[l]);
        int g = l / 4, t = l % 4 * 2;
        if (!lane) {
            emulation_fault("mma", "lane %d has ended", l);
            return;
        }
        for (int i = 0; i < 8; i++)
            a[g + i / 2 % 2 * 8][t + i / 4 * 8 + i % 2] = ptx_half(lane->a[i / 2], i % 2);
        for (int i = 0; i < 4; i++)
            b[t + i / 2 * 8 + i % 2][g] = ptx_half(lane->b[i / 2], i % 2);
    }
    for (int l = 0; l < 32; l++) {
        const ptx_mma_lane *lane = static_cast<const ptx_mma_lane *>(lanes[l]);
        for (int i = 0; i < 4; i++) {
            float sum = *lane->d[i];
            for (int k = 0; k < 16; k++)
                sum += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
            *lane->d[i] = sum;
        }
    }
}

static inline void ptx_mma(float &d0, float &d1, float &d2, float &d3, const uint32_t (&a)[4],
                           uint32_t b0, uint32_t b1, EMULATION_PLACE)
{
    ptx_mma_lane lane = {{&d0, &d1, &d2, &d3}, a, {b0, b1}};
    emulation_collective(0xffffffffu, &lane, ptx_mma_all, "mma", true, {file, line});
}

struct ptx_load_lane {
    uint32_t *r;
    const char *row;
};

template <bool TRANSPOSED> void ptx_load_all(void *const *lanes, unsigned int mask)
{
    (void)mask;
    for (int l = 0; l < 32; l++) {
        if (lanes[l])
            continue;
        emulation_fault("ldmatrix", "lane %d has ended", l);
        return;
    }
    for (int l = 0; l < 32; l++)
        for (int matrix = 0; matrix < 4; matrix++) {
            uint32_t pair = 0;
            for (int i = 0; i < 2; i++) {
                int row = TRANSPOSED ? l % 4 * 2 + i : l / 4;
                int column = TRANSPOSED ? l / 4 : l % 4 * 2 + i;
                const ptx_load_lane *from =
                    static_cast<const ptx_load_lane *>(lanes[matrix * 8 + row]);
                uint16_t half;
                memcpy(&half, from->row + column * 2, sizeof(half));
                pair |= (uint32_t)half << (16 * i);
            }
            static_cast<ptx_load_lane *>(lanes[l])->r[matrix] = pair;
        }
}

template <bool TRANSPOSED>
void ptx_load(uint32_t (&r)[4], const void *row, struct emulation_place place)
{
    ptx_load_lane lane = {r, static_cast<const char *>(row)};
    if ((uintptr_t)row % 16)
        emulation_fault("misaligned", "ldmatrix at %p", row);
    emulation_access(row, 16, false);
    emulation_collective(0xffffffffu, &lane, ptx_load_all<TRANSPOSED>, "ldmatrix", true, place);
}

static inline void ptx_load_matrices(uint32_t (&r)[4], const void *row, EMULATION_PLACE)
{
    ptx_load<false>(r, row, {file, line});
}

static inline void ptx_load_transposed(uint32_t (&r)[4], const void *row, EMULATION_PLACE)
{
    ptx_load<true>(r, row, {file, line});
}

static inline void ptx_copy_async(void *shared, const void *global, bool valid)
{
    emulation_copy_async(shared, global, valid ? 16 : 0);
}

static inline void ptx_copy_commit()
{
    emulation_copy_commit();
}

template <int GROUPS_LEFT> static inline void ptx_copy_wait()
{
    emulation_copy_wait(GROUPS_LEFT);
}

#endif

#endif
