/* The entry points: rounding with a scale for each row, or for blocks, and largest magnitudes.
 *
 * altcore/numerics/build.py compiles this file; native.py and native_blocks.py fill in the
 * structs.
 */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "rounding.h"
#include "tables.h"
#include "blocks.h"

#ifdef _OPENMP
#define PARALLEL _Pragma("omp parallel num_threads(threads) if (threads > 1)")
#define CRITICAL _Pragma("omp critical(altcore_totals)")
#else
#define PARALLEL
#define CRITICAL
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

static void round_block(const struct job *j, int64_t start, int n, struct totals *totals) {
    float wide[BLOCK], grid[BLOCK];
    const int to_half = j->is_half && j->is_fake, apart = to_half || j->errors;
    const float_loop loop = j->is_table ? round_table : loop_of(j);
    const float *x = (const float *)j->x + start;
    if (j->is_half) {
        widen((const uint16_t *)j->x + start, wide, n);
        x = wide;
    }
    for (int i = 0, m; i < n; i += m) {
        const int64_t at = (start + i) / j->row, left = (at + 1) * j->row - (start + i);
        m = left < n - i ? (int)left : n - i;
        const float s = j->s ? j->s[at] : 1.0f;
        float *out = (float *)j->out + start + i; /* floats, unless to_half */
        struct part p = {x + i, apart ? grid : out, start + i, m, 1.0f, apart ? 1.0f : s, 0, 0};
        if (j->r) p.r = j->r[at];
        loop(j, &p, totals->counts);
        p.out = to_half ? 0 : out, p.s = s;
        if (j->errors) add_errors(j, &p, grid, totals);
        if (to_half)
            narrow(grid, s, (double)j->smallest * s, (uint16_t *)j->out + start + i, m);
    }
}

static void add_totals(const struct job *j, const struct totals *totals, int64_t thread) {
    if (j->counts) {
        CRITICAL
        for (int k = 1; k < 4; k++) j->counts[k] += totals->counts[k];
    }
    if (j->errors) { /* added up by the caller, in the order of the threads */
        j->errors[2 * thread] = totals->noise;
        j->errors[2 * thread + 1] = totals->signal;
    }
}

/* Blocks are shared out in one run for each thread; the result does not depend on how many. */
void altcore_round(const struct job *j) {
    const int64_t blocks = (j->n + BLOCK - 1) / BLOCK;
    const int threads = j->threads;
    (void)threads;
    PARALLEL {
        struct totals totals = {{0, 0, 0, 0}, 0.0, 0.0};
        const int64_t id = omp_get_thread_num(), count_of = omp_get_num_threads();
        const int64_t last = blocks * (id + 1) / count_of;
        for (int64_t b = blocks * id / count_of; b < last; b++) {
            const int64_t start = b * BLOCK, left = j->n - start;
            round_block(j, start, left < BLOCK ? (int)left : BLOCK, &totals);
        }
        add_totals(j, &totals, id);
    }
    if (j->counts) j->counts[0] += j->n;
}

/* Tiles likewise. */
void altcore_round_blocks(const struct block_job *b) {
    const struct job *j = &b->job;
    const int64_t tiles = tiles_of(b);
    const int threads = j->threads;
    (void)threads;
    PARALLEL {
        struct totals totals = {{0, 0, 0, 0}, 0.0, 0.0};
        const int64_t id = omp_get_thread_num(), count_of = omp_get_num_threads();
        const int64_t last = tiles * (id + 1) / count_of;
        for (int64_t t = tiles * id / count_of; t < last; t++) round_tile(b, t, &totals);
        add_totals(j, &totals, id);
    }
    if (j->counts) j->counts[0] += j->n;
}

/* So that the loader can check that both sides agree on the struct. */
int64_t altcore_job_size(void) { return (int64_t)sizeof(struct job); }
int64_t altcore_block_job_size(void) { return (int64_t)sizeof(struct block_job); }

/* The bits of the largest magnitude: NaN sorts above infinity, and infinity above the rest. */
static uint32_t largest_in(const void *x, int is_half, int64_t start, int64_t end) {
    uint32_t largest = 0;
    if (is_half) {
        const uint16_t *p = x;
        uint16_t most = 0;
        for (int64_t i = start; i < end; i++) {
            const uint16_t mag = p[i] & 0x7fff;
            most = mag > most ? mag : most;
        }
        largest = (uint32_t)most << 16;
    } else {
        const float *p = x;
        for (int64_t i = start; i < end; i++) {
            const uint32_t mag = bits_of(p[i]) & ~SIGN;
            largest = mag > largest ? mag : largest;
        }
    }
    return largest;
}

float altcore_amax(const void *x, int64_t n, int32_t is_half, int32_t threads) {
    uint32_t largest = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(max : largest)
#endif
    {
        const int64_t id = omp_get_thread_num(), count_of = omp_get_num_threads();
        largest = largest_in(x, is_half, n * id / count_of, n * (id + 1) / count_of);
    }
    (void)threads;
    return float_of(largest > INFINITE ? NOT_A_NUMBER : largest);
}

/* Of all blocks, which are kept for altcore_round_blocks. */
float altcore_block_amax(const struct block_job *b) {
    const int64_t tiles = tiles_of(b);
    const int threads = b->job.threads;
    uint32_t largest = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(max : largest)
#endif
    {
        const int64_t id = omp_get_thread_num(), count_of = omp_get_num_threads();
        const int64_t last = tiles * (id + 1) / count_of;
        for (int64_t t = tiles * id / count_of; t < last; t++) {
            const uint32_t found = keep_largest(b, t);
            largest = found > largest ? found : largest;
        }
    }
    (void)threads;
    return float_of(largest > INFINITE ? NOT_A_NUMBER : largest);
}
