/* Moving bytes and nothing else. */
#include "base/checked.h"
#include "kernels/cpu/cpu.h"

struct unit {
    uint64_t low, high;
};
_Static_assert(sizeof(struct unit) == STREAM_UNIT_BYTES, "a unit is two words");

/* Units [first, end) of x, and what they give. */
static uint64_t stream_part(const struct stream *op, size_t n, size_t first, size_t end) {
    const struct unit *in = op->in;
    struct unit *out = op->out;
    uint64_t sum = 0;
    for (size_t i = first; i < end; i++) {
        struct unit x = {0, 0};
        for (size_t j = i; j < op->read_units; j += n) {
            x.low ^= in[j].low;
            x.high ^= in[j].high;
        }
        for (size_t j = i; j < op->write_units; j += n) out[j] = x;
        sum ^= x.low ^ x.high;
    }
    return sum;
}

enum status cpu_stream(struct device *device, const struct stream *op) {
    enum { TILE = 4096 };
    const size_t n = stream_threads(op);
    uint64_t sum = 0;
    if (((uintptr_t)op->in | (uintptr_t)op->out) % STREAM_UNIT_BYTES != 0 || op->checksum == NULL) {
        return status_set(STATUS_INTERNAL, "stream: from %p to %p, expected multiples of %d",
                          op->in, op->out, STREAM_UNIT_BYTES);
    }
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(^ : sum)
    for (size_t first = 0; first < n; first += TILE) {
        sum ^= stream_part(op, n, first, size_min(n, first + TILE));
    }
    *op->checksum ^= (uint32_t)(sum ^ sum >> 32);
    return STATUS_OK;
}
