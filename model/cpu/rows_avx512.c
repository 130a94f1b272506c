/* rows for x86-64 with AVX-512; elsewhere the file is empty. */
#if defined(__x86_64__)
#include <immintrin.h>                   /* first: only what is below needs the instructions */
#pragma GCC diagnostic ignored "-Wpsabi" /* no vector crosses a call: all helpers are inlined */
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define ROWS_TABLE rows_avx512
#include "model/cpu/rows_template.h"
#else
typedef int rows_avx512_empty;
#endif
