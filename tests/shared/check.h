/* check: cmocka with the headers that it wants included before it. Every test includes it. */
#ifndef SPILLWAY_TESTS_SHARED_CHECK_H
#define SPILLWAY_TESTS_SHARED_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#endif
