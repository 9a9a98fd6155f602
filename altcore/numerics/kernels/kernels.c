/* The entry points: rounding with a scale for each row, or for blocks, and largest magnitudes.
 *
 * compiler.py compiles this file; rounding.py and the modules beside it fill in the structs.
 */
#ifdef _OPENMP
#include <omp.h>
#endif

#include <stddef.h>

#include "rounding.h"
#include "tables.h"
#include "magic_number.h"
#include "blocks.h"
#include "tiles.h"
#include "epilogue.h"
#include "flips.h"
#include "ordinals.h"
#include "reductions.h"
#include "layouts.h"

#ifdef _OPENMP
#define PARALLEL _Pragma("omp parallel num_threads(threads) if (threads > 1)")
#else
#define PARALLEL
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

#define MOST_THREADS 256 /* as in tensors.py */

/* Elements that share a scale; `x`: widened, unless `usual`. */
static void round_row(const struct job *j, const float *x, int64_t start, int n, float r, float s,
                      int usual, struct totals *totals) {
    float grid[BLOCK];
    const int to_half = j->to_half, apart = to_half || j->errors;
    float *out = (float *)j->out + start; /* floats, unless to_half */
    struct part p = {x, out, start, n, r, s, 0, 0};
    if (usual && j->errors) {
        measure(j, &p, to_half ? grid : 0, totals);
    } else {
        if (apart) p.out = grid, p.s = 1.0f;
        (j->is_table ? round_table : loop_of(j))(j, &p, totals->counts);
        p.out = to_half ? 0 : out, p.s = s;
        if (j->errors) add_errors(j, &p, grid, totals);
    }
    if (to_half) write_halves(j, grid, s, (uint16_t *)j->out + start, n);
}

static void round_block(const struct job *j, int64_t start, int n, struct totals *totals) {
    float wide[BLOCK];
    const int usual = !j->is_table && loop_of(j) == adding;
    const int64_t in = j->is_half ? 2 : 4, to = j->to_half ? 2 : 4;
    const float *x = (const float *)j->x + start;
    for (int i = 0, m; i < n; i += m) {
        const int64_t from = start + i, at = from / j->row, left = (at + 1) * j->row - from;
        m = left < n - i ? (int)left : n - i;
        const float r = j->r ? j->r[at] : 1.0f, s = j->s ? j->s[at] : 1.0f;
        const adding_loop add = usual && !j->errors ? adding_loop_of(j, s) : 0;
        if (add) {
            add(j, (const char *)j->x + from * in, (char *)j->out + from * to, m, r, s,
                totals->counts);
            continue;
        }
        if (j->is_half) widen((const uint16_t *)j->x + from, wide + i, m), x = wide;
        round_row(j, x + i, from, m, r, s, usual, totals);
    }
}

/* In the order of the threads: sums of floats depend on it. */
static void add_totals(const struct job *j, const struct totals *each) {
    if (j->counts) j->counts[0] += j->n;
    for (int t = 0; t < j->threads; t++) {
        for (int k = 1; j->counts && k < 4; k++) j->counts[k] += each[t].counts[k];
        if (j->errors) j->errors[0] += each[t].noise, j->errors[1] += each[t].signal;
    }
}

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

static float amax_of(const void *x, int64_t n, int32_t is_half, int32_t threads) {
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

/* The bits of the fraction of a positive number, and its exponent. */
static int32_t split(float m, uint32_t *fraction) {
    const int subnormal = bits_of(m) < 0x00800000u;
    const uint32_t bits = subnormal ? bits_of(m * 0x1p24f) : bits_of(m);
    *fraction = bits & 0x007fffffu;
    return (int32_t)(bits >> 23) - (subnormal ? 151 : 127);
}

/* As scaling.py does: in float64, rounded once more. Returns whether what is scaled so is
 * `bounded`: whether the largest magnitude, with what rounding may add to it, does not pass. */
static int find_scale(const struct job *j) {
    const double margin = j->margin, top = j->meets;
    const float m = (float)((double)amax_of(j->x, j->n, j->is_half, j->threads) * margin);
    float s = 1.0f, r = 1.0f;
    if (!(m < INFINITY)) {
        s = r = float_of(NOT_A_NUMBER);
    } else if (m > 0.0f && j->scaling == BY_POWER) {
        uint32_t fraction, of_top;
        const int32_t exponent = split(m, &fraction);
        int32_t power = exponent - split(j->meets, &of_top);
        power += fraction > of_top ? 1 : 0;
        power = power < -126 ? -126 : power > 126 ? 126 : power;
        s = power_of_two(power), r = power_of_two(-power);
    } else if (m > 0.0f) {
        const float finite = float_of(INFINITE - 1);
        s = (float)(m / top), r = (float)(top / m);
        s = s < 0x1p-128f ? 0x1p-128f : s > finite ? finite : s;
        r = r > finite ? finite : r;
    }
    *(float *)j->s = s, *(float *)j->r = r;
    return m < INFINITY && margin >= 1.0 && top * (1.0 + 0x1p-20) < j->top;
}

/* Blocks are shared out in one run for each thread; the result does not depend on how many.
 * `call`: what rounding.py packs, of any alignment. */
void altcore_round(const struct job *prepared, const void *call) {
    struct job own = *prepared;
    memcpy(&own, call, offsetof(struct job, few));
    const struct job *j = &own;
    const int64_t blocks = (j->n + BLOCK - 1) / BLOCK;
    const int threads = j->threads;
    struct totals each[MOST_THREADS];
    memset(each, 0, (size_t)threads * sizeof *each);
    if (j->scaling != GIVEN) own.bounded = find_scale(j);
    if (j->scaling != GIVEN && !j->is_fake) own.s = 0;
    PARALLEL {
        struct totals totals = {{0, 0, 0, 0}, 0.0, 0.0};
        const int64_t id = omp_get_thread_num(), count_of = omp_get_num_threads();
        const int64_t last = blocks * (id + 1) / count_of;
        for (int64_t b = blocks * id / count_of; b < last; b++) {
            const int64_t start = b * BLOCK, left = j->n - start;
            round_block(j, start, left < BLOCK ? (int)left : BLOCK, &totals);
        }
        each[id] = totals;
    }
    add_totals(j, each);
}

/* Tiles likewise. */
void altcore_round_blocks(const struct block_job *b) {
    const struct job *j = &b->job;
    const int64_t tiles = tiles_of(b);
    const int threads = j->threads, how = way_of(b);
    struct totals each[MOST_THREADS];
    memset(each, 0, (size_t)threads * sizeof *each);
    PARALLEL {
        struct totals totals = {{0, 0, 0, 0}, 0.0, 0.0};
        const int64_t id = omp_get_thread_num(), count_of = omp_get_num_threads();
        const int64_t last = tiles * (id + 1) / count_of;
        for (int64_t t = tiles * id / count_of; t < last; t++) round_tile(b, t, how, &totals);
        each[id] = totals;
    }
    add_totals(j, each);
}

/* Rows are shared out likewise. */
void altcore_scale_output(const struct epilogue *o) {
    const int threads = o->threads;
    PARALLEL {
        const int64_t id = omp_get_thread_num(), count_of = omp_get_num_threads();
        scale_rows(o, o->rows * id / count_of, o->rows * (id + 1) / count_of);
    }
    (void)threads;
}

/* For each run of BLOCK elements of `n`, shared out among the threads, `(...)(start, length)`. */
#define EACH_BLOCK(n, call)                                                                    \
    do {                                                                                       \
        const int64_t blocks = ((n) + BLOCK - 1) / BLOCK;                                      \
        const int64_t id = omp_get_thread_num(), count_of = omp_get_num_threads();             \
        const int64_t last = blocks * (id + 1) / count_of;                                     \
        for (int64_t b = blocks * id / count_of; b < last; b++) {                              \
            const int64_t start = b * BLOCK, left = (n) - start;                               \
            const int length = left < BLOCK ? (int)left : BLOCK;                               \
            call;                                                                              \
        }                                                                                      \
    } while (0)

void altcore_follow_flips(const struct flips *f) {
    const int threads = f->threads;
    int64_t each[MOST_THREADS][2] = {{0}};
    PARALLEL {
        int64_t totals[2] = {0, 0};
        EACH_BLOCK(f->n, (f->is_half ? follow_halves : follow_floats)(f, start, length, totals));
        memcpy(each[omp_get_thread_num()], totals, sizeof totals);
    }
    f->found[0] = f->found[1] = 0;
    for (int i = 0; i < threads; i++) f->found[0] += each[i][0], f->found[1] += each[i][1];
}

void altcore_find_ordinals(const struct ordinals *p) {
    const int threads = p->threads;
    PARALLEL { EACH_BLOCK(p->n, rank_run(p, start, length)); }
    (void)threads;
}

void altcore_inner_products(const struct reduction *t, double *sums) {
    const int threads = t->threads;
    double each[MOST_THREADS][4] = {{0}};
    PARALLEL {
        double totals[4] = {0.0, 0.0, 0.0, 0.0};
        EACH_BLOCK(t->n, products(t, start, length, totals));
        memcpy(each[omp_get_thread_num()], totals, sizeof totals);
    }
    memset(sums, 0, 4 * sizeof *sums);
    for (int i = 0; i < threads; i++)
        for (int k = 0; k < 4; k++) sums[k] += each[i][k];
}

static double sum_deviations(const struct reduction *t, int squared, double mean) {
    const int threads = t->threads;
    double each[MOST_THREADS] = {0}, sum = 0.0;
    PARALLEL {
        double total = 0.0;
        EACH_BLOCK(t->n, deviations(t, squared, mean, start, length, &total));
        each[omp_get_thread_num()] = total;
    }
    for (int i = 0; i < threads; i++) sum += each[i];
    return sum;
}

void altcore_moments(const struct reduction *t, double *moments) {
    moments[0] = (double)t->n;
    moments[1] = sum_deviations(t, 0, 0.0) / moments[0];
    moments[2] = sum_deviations(t, 1, moments[1]);
}

void altcore_count_small(const struct reduction *t, int64_t *number) {
    const int threads = t->threads;
    int64_t each[MOST_THREADS] = {0};
    PARALLEL {
        int64_t found = 0;
        EACH_BLOCK(t->n, small_ones(t, start, length, &found));
        each[omp_get_thread_num()] = found;
    }
    *number = 0;
    for (int i = 0; i < threads; i++) *number += each[i];
}

/* So that the loader can check that both sides agree on the structs. */
const struct field *altcore_fields(void) { return fields; }
int64_t altcore_field_count(void) { return (int64_t)(sizeof fields / sizeof *fields); }

void altcore_amax(const void *x, int64_t n, int32_t is_half, int32_t threads, float *most) {
    *most = amax_of(x, n, is_half, threads);
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
