#include "tools/machines.h"

#include "core/base.h"

/* Kind, a name that C and the assembler take, and the file's. In the order of --help. */
#define FILES(X)                                                                                   \
    X(GPU, rtx3060, "rtx3060")                                                                     \
    X(GPU, rtx3090, "rtx3090")                                                                     \
    X(GPU, rtx4090, "rtx4090")                                                                     \
    X(GPU, rtx5090, "rtx5090")                                                                     \
    X(GPU, h100, "h100")                                                                           \
    X(CPU, c7950x, "7950x")                                                                        \
    X(CPU, c7950x3d, "7950x3d")                                                                    \
    X(CPU, c13900k, "13900k")                                                                      \
    X(SSD, s970evoplus_1tb, "970evoplus-1tb")                                                      \
    X(SSD, s970evoplus_2tb, "970evoplus-2tb")                                                      \
    X(SSD, s980pro_1tb, "980pro-1tb")                                                              \
    X(SSD, s990pro_2tb, "990pro-2tb")                                                              \
    X(SSD, sn850x_2tb, "sn850x-2tb")                                                               \
    X(SSD, t500_2tb, "t500-2tb")                                                                   \
    X(SSD, t700_1tb, "t700-1tb")                                                                   \
    X(SSD, t700_2tb, "t700-2tb")                                                                   \
    X(SSD, t700_4tb, "t700-4tb")                                                                   \
    X(SSD, t705_2tb, "t705-2tb")                                                                   \
    X(SSD, s9100pro_2tb, "9100pro-2tb")                                                            \
    X(SSD, qlc_2tb, "qlc-2tb")                                                                     \
    X(SSD, p5510_4tb, "p5510-4tb")                                                                 \
    X(BOX, cpu_7950x_128, "cpu-7950x-128")                                                         \
    X(BOX, rtx3060_7950x_96, "rtx3060-7950x-96")                                                   \
    X(BOX, rtx3060_7950x3d_128, "rtx3060-7950x3d-128")                                             \
    X(BOX, rtx3060_7950x3d_192, "rtx3060-7950x3d-192")                                             \
    X(BOX, rtx3060_13900k_128, "rtx3060-13900k-128")                                               \
    X(BOX, rtx3060_13900k_192, "rtx3060-13900k-192")                                               \
    X(BOX, rtx3090_7950x3d_128, "rtx3090-7950x3d-128")                                             \
    X(BOX, rtx3090x2_7950x3d_192, "rtx3090x2-7950x3d-192")                                         \
    X(BOX, rtx4090_13900k_128, "rtx4090-13900k-128")                                               \
    X(BOX, rtx4090_7950x3d_192, "rtx4090-7950x3d-192")                                             \
    X(BOX, rtx5090_7950x3d_192, "rtx5090-7950x3d-192")

/* The path is taken from the folder that make runs in, as that of every include is. The bytes go
 * to read-only data and leave the section as the compiler expects it. */
#define EMBED(kind, symbol, name)                                                                  \
    __asm__(".pushsection .rodata\n"                                                               \
            "machines_" #symbol "_begin:\n"                                                        \
            ".incbin \"tools/machines/" name ".json\"\n"                                           \
            "machines_" #symbol "_end:\n"                                                          \
            ".popsection\n");                                                                      \
    extern const char symbol##_begin[] __asm__("machines_" #symbol "_begin");                      \
    extern const char symbol##_end[] __asm__("machines_" #symbol "_end");
FILES(EMBED)

#define ROW(kind, symbol, name) {MACHINES_##kind, name, symbol##_begin, symbol##_end},
const struct machines_file machines_files[] = {FILES(ROW)};
const size_t machines_count = ARRAY_COUNT(machines_files);
