/* A .safetensors file of any bytes; the ends of all tensors of what opens are read. */
#include "core/base.h"
#include "io/safetensors.h"
#include "tests/fuzz/files.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

static void read_ends(const struct safetensors *file, const struct safetensors_tensor *tensor)
{
    float values[8];
    struct err err;
    size_t count = (size_t)MIN(tensor->element_count, (uint64_t)ARRAY_COUNT(values));
    ASSERT(safetensors_find(file, tensor->name) != NULL);
    if (count > 0 && safetensors_read(file, tensor, 0, values, count, &err) == 0)
        (void)safetensors_read(file, tensor, tensor->element_count - count, values, count, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct err err;
    struct safetensors *file;
    const char *path = fuzz_write("model.safetensors", data, bytes);
    if (safetensors_open(&file, path, &err) != 0)
        return 0;
    for (size_t i = 0; i < safetensors_count(file); i++)
        read_ends(file, safetensors_at(file, i));
    safetensors_close(file);
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *to)
{
    static const char *const headers[] = {
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}",
        "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_"
        "offsets\":"
        "[0,8]},\"b\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[8,16]}}     ",
        "{\"a\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]},"
        "\"b\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[8,8]}}",
    };
    if (index >= ARRAY_COUNT(headers))
        return SIZE_MAX;
    size_t header = strlen(headers[index]);
    memset(to, 0, 8);
    to[0] = (uint8_t)header;
    memcpy(to + 8, headers[index], header);
    for (size_t i = 0; i < 24; i++)
        to[8 + header + i] = (uint8_t)(i * 37);
    return 8 + header + 24;
}
