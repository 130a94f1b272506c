/* rows for x86-64 with AVX2; elsewhere the file is empty. */
#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wpsabi" /* no vector crosses a call: all helpers are inlined */
#pragma GCC target("avx2")
#define ROWS_TABLE rows_avx2
#include "model/cpu/rows_template.h"
#else
typedef int rows_avx2_empty;
#endif
