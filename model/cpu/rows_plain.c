/* rows for any CPU that the compiler targets by default. */
#pragma GCC diagnostic ignored "-Wpsabi" /* no vector crosses a call: all helpers are inlined */
#define ROWS_TABLE rows_plain
#include "model/cpu/rows_template.h"
