/* Rounding to a number format's grid, for float32 and bfloat16 tensors in memory.
 *
 * Bit for bit what altcore/numerics/rounding.py computes, in one pass: each block of elements
 * goes through small loops (load and scale, round, count, scale back and store) that stay in
 * the first-level cache and that the compiler vectorises. No torch headers, so that it compiles
 * in about a second; altcore/numerics/native.py compiles it, and fills in `job`.
 *
 * Needs -ffp-contract=off: a fused multiply-add would skip a rounding that is part of the
 * definition.
 */
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define BLOCK 1024 /* divides 2**32: the index's high half is constant in a block */
#define SIGN 0x80000000u
#define INFINITE 0x7f800000u
#define NOT_A_NUMBER 0x7fc00000u

enum { NEAREST_EVEN, NEAREST_AWAY, TO_ZERO, UP, DOWN, STOCHASTIC };

struct entry { /* a bucket of magnitudes with at most one threshold in it */
    uint32_t threshold, near, far, unused;
};

struct job {
    const void *x;
    void *out;
    int64_t n;
    const float *r, *s; /* one number per `row` elements, or NULL for 1 */
    int64_t row;
    int64_t *counts; /* elements, overflow, flushed, nonfinite: added to; or NULL */
    uint64_t key;    /* mixed; for stochastic rounding */
    /* a table: buckets for each sign, or sorted thresholds to search */
    const struct entry *entries; /* 2 * buckets */
    const float *thresholds;
    const uint32_t *payloads; /* one per gap between thresholds */
    const double *grid;       /* extended by one at each end; for stochastic rounding */
    int64_t threshold_count, buckets;
    uint32_t bucket_low, bucket_high, bucket_shift;
    float bottom, top; /* rounding passes the ends below and from here */
    /* a float format */
    uint32_t min_normal, cut, flip;
    float magic, max, to_one, to_grid, unit;
    /* all */
    uint32_t over_bits; /* magnitude given to overflows */
    int32_t rounding, is_table, is_half, is_fake, saturates, threads;
};

static inline uint32_t bits_of(float f) {
    uint32_t b;
    memcpy(&b, &f, 4);
    return b;
}

static inline float float_of(uint32_t b) {
    float f;
    memcpy(&f, &b, 4);
    return f;
}

/* ---------------------------------------------------------------- rounding to a float format
 * LARGE: the rounded bits of a magnitude in the normal range; carries into the exponent are
 * right. SMALL: the rounded value of one below, a multiple of `unit`. */

#define ROUND_LOOP(NAME, LARGE, SMALL)                                                         \
    static void NAME(const struct job *j, const float *restrict y,                             \
                     const uint32_t *restrict noise, float *restrict q,                        \
                     uint32_t *restrict over, int n) {                                         \
        const uint32_t cut = j->cut, mask = (1u << cut) - 1, half = 1u << (cut - 1);           \
        const uint32_t flip = j->flip, min_normal = j->min_normal;                             \
        const float magic = j->magic, max = j->max, to_one = j->to_one;                        \
        const float to_grid = j->to_grid, unit = j->unit;                                      \
        (void)mask, (void)half, (void)flip, (void)magic, (void)noise;                          \
        (void)to_one, (void)to_grid, (void)unit;                                               \
        for (int i = 0; i < n; i++) {                                                          \
            const uint32_t bits = bits_of(y[i]), sign = bits & SIGN, mag = bits ^ sign;        \
            const float a = float_of(mag);                                                     \
            const uint32_t large = (LARGE);                                                    \
            const float small = (SMALL);                                                       \
            const float size = mag < min_normal ? small : float_of(large);                     \
            const int passed = size > max;                                                     \
            const uint32_t kept = bits_of(passed ? max : size) | sign;                         \
            const int missing = mag > INFINITE;                                                \
            q[i] = float_of(missing ? NOT_A_NUMBER : kept);                                    \
            over[i] = (passed ? 1u : 0u) & (missing ? 0u : 1u);                                \
        }                                                                                      \
    }

/* Whole steps in a small magnitude; the product with `unit` is exact. */
static inline float whole_steps(float a, float to_one, float to_grid) {
    const float steps = (a * to_one) * to_grid;
    return (float)(int32_t)(steps < 262144.0f ? steps : 262144.0f);
}

static inline float directed(float a, float to_one, float to_grid, float unit, int away) {
    const float k = whole_steps(a, to_one, to_grid), below = k * unit;
    return (away & (below < a)) ? (k + 1.0f) * unit : below;
}

static inline float half_away(float a, float to_one, float to_grid, float unit) {
    const float steps = (a * to_one) * to_grid, k = whole_steps(a, to_one, to_grid);
    return (k + (steps - k >= 0.5f ? 1.0f : 0.0f)) * unit;
}

static inline float random_away(float a, float to_one, float to_grid, float unit, uint32_t h) {
    const float steps = (a * to_one) * to_grid, k = whole_steps(a, to_one, to_grid);
    /* h + 1/2 below the fraction in units of 2**-32; by way of a signed number for speed */
    const double drawn = (double)(int32_t)(h ^ SIGN) + 2147483648.5;
    return (k + ((double)(steps - k) * 4294967296.0 > drawn ? 1.0f : 0.0f)) * unit;
}

ROUND_LOOP(round_nearest_even, (mag + (half - 1) + (((mag >> cut) ^ flip) & 1)) & ~mask,
           (a + magic) - magic)
ROUND_LOOP(round_nearest_away, (mag + half) & ~mask, half_away(a, to_one, to_grid, unit))
ROUND_LOOP(round_to_zero, mag & ~mask, directed(a, to_one, to_grid, unit, 0))
ROUND_LOOP(round_up, (mag + (sign ? 0 : mask)) & ~mask,
           directed(a, to_one, to_grid, unit, sign == 0))
ROUND_LOOP(round_down, (mag + (sign ? mask : 0)) & ~mask,
           directed(a, to_one, to_grid, unit, sign != 0))
ROUND_LOOP(round_stochastic, (mag + (~noise[i] >> (32 - cut))) & ~mask,
           random_away(a, to_one, to_grid, unit, noise[i]))

typedef void (*round_loop)(const struct job *, const float *restrict, const uint32_t *restrict,
                           float *restrict, uint32_t *restrict, int);

static const round_loop ROUND_LOOPS[] = {round_nearest_even, round_nearest_away, round_to_zero,
                                         round_up,           round_down,         round_stochastic};

/* The hash of altcore/numerics/hashing.py. */
static void draw(const struct job *j, int64_t start, uint32_t *restrict noise, int n) {
    const uint32_t first = (uint32_t)j->key;
    const uint32_t second = (uint32_t)(j->key >> 32) ^ (uint32_t)((uint64_t)start >> 32);
    for (int i = 0; i < n; i++) {
        uint32_t x = ((uint32_t)start + (uint32_t)i) ^ first;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = x ^ (x >> 15) ^ second;
        x *= 0x846ca68bu;
        noise[i] = x ^ (x >> 16);
    }
}

/* ------------------------------------------------------------------------ rounding to a table
 * The payload of each number's gap between thresholds: a value's bits, or the gap's index. */

static void find_gaps(const struct job *j, const float *restrict y, uint32_t *restrict gap,
                      int n) {
    const uint32_t low = j->bucket_low, high = j->bucket_high, shift = j->bucket_shift;
    if (j->buckets) {
        const uint32_t half = (uint32_t)j->buckets;
        uint32_t where[BLOCK];
        for (int i = 0; i < n; i++) {
            const uint32_t bits = bits_of(y[i]), mag = bits & ~SIGN;
            const uint32_t inside = mag < low ? low : mag > high ? high : mag;
            where[i] = ((inside - low) >> shift) + (bits & SIGN ? half : 0);
        }
        for (int i = 0; i < n; i++) {
            const struct entry e = j->entries[where[i]];
            gap[i] = (bits_of(y[i]) & ~SIGN) >= e.threshold ? e.far : e.near;
        }
        return;
    }
    for (int i = 0; i < n; i++) {
        int64_t first = 0, length = j->threshold_count;
        while (length > 0) {
            const int64_t step = (length + 1) / 2;
            const int64_t right = j->thresholds[first + step - 1] <= y[i];
            first += right ? step : 0;
            length = right ? length - step : step - 1;
        }
        gap[i] = j->payloads[first];
    }
}

static void round_table(const struct job *j, const float *restrict y,
                        const uint32_t *restrict noise, float *restrict q,
                        uint32_t *restrict over, int n) {
    uint32_t gap[BLOCK];
    const float bottom = j->bottom, top = j->top;
    find_gaps(j, y, gap, n);
    if (j->rounding == STOCHASTIC) {
        /* here a payload is the count of grid values at or below the number */
        const int64_t last = j->threshold_count - 3; /* index of the largest value */
        for (int i = 0; i < n; i++) {
            int64_t below = (int64_t)gap[i] - 1;
            int64_t at = below < 0 ? 0 : below > last + 1 ? last + 1 : below;
            const double lower = j->grid[at], upper = j->grid[at + 1], v = (double)y[i];
            const double low_size = lower < 0 ? -lower : lower;
            const double high_size = upper < 0 ? -upper : upper;
            const int inner_above = upper == -lower ? v >= 0 : high_size < low_size;
            const double inner = inner_above ? upper : lower, width = upper - lower;
            const double distance = v < inner ? inner - v : v - inner;
            const int outside = distance * 4294967296.0 > ((double)noise[i] + 0.5) * width;
            int64_t index = at + (inner_above ^ outside);
            index = below < 0 ? 0 : below > last + 1 ? last + 2 : index;
            over[i] = index == 0 || index == last + 2;
            index = index < 1 ? 1 : index > last + 1 ? last + 1 : index;
            gap[i] = bits_of((float)j->grid[index]);
        }
    } else {
        for (int i = 0; i < n; i++)
            over[i] = (y[i] < bottom ? 1u : 0u) | (y[i] >= top ? 1u : 0u);
    }
    for (int i = 0; i < n; i++) {
        const uint32_t bits = bits_of(y[i]), sign = bits & SIGN;
        const int missing = (bits ^ sign) > INFINITE;
        const uint32_t value = (gap[i] & ~SIGN) == 0 ? sign : gap[i];
        q[i] = float_of(missing ? NOT_A_NUMBER : value);
        over[i] = missing ? 0 : over[i];
    }
}

/* ------------------------------------------------------------------------- the other stages */

static void widen(const uint16_t *restrict x, float *restrict wide, int n) {
    for (int i = 0; i < n; i++) wide[i] = float_of((uint32_t)x[i] << 16);
}

static void multiply(const float *restrict a, const float *factors, int64_t row, int64_t start,
                     float *restrict product, int n) {
    for (int i = 0; i < n;) {
        const int64_t at = (start + i) / row, left = (at + 1) * row - (start + i);
        const int end = left < n - i ? i + (int)left : n;
        const float factor = factors[at];
        for (; i < end; i++) product[i] = a[i] * factor;
    }
}

static void count(const float *restrict x, const float *restrict q,
                  const uint32_t *restrict over, int n, int64_t *totals) {
    uint32_t passed = 0, flushed = 0, nonfinite = 0;
    for (int i = 0; i < n; i++) {
        const uint32_t mag = bits_of(x[i]) & ~SIGN;
        const uint32_t finite = mag < INFINITE ? 1 : 0;
        const uint32_t zero = (bits_of(q[i]) & ~SIGN) == 0 ? 1 : 0;
        passed += over[i] & finite;
        flushed += zero & finite & (mag ? 1 : 0) & (over[i] ^ 1);
        nonfinite += finite ^ 1;
    }
    totals[0] += passed;
    totals[1] += flushed;
    totals[2] += nonfinite;
}

static void replace(const float *restrict y, const uint32_t *restrict over, uint32_t value,
                    float *restrict q, int n) {
    const uint32_t keep_sign = value == NOT_A_NUMBER ? 0 : SIGN;
    for (int i = 0; i < n; i++)
        q[i] = over[i] ? float_of(value | (bits_of(y[i]) & keep_sign)) : q[i];
}

/* To bfloat16, the product q * s rounded once: to odd in float32, then to nearest even. */
static void narrow(const float *restrict q, float s, uint16_t *restrict out, int n) {
    for (int i = 0; i < n; i++) {
        const double product = (double)q[i] * (double)s;
        const float single = (float)product;
        const double back = (double)single;
        const double size = product < 0 ? -product : product, near = back < 0 ? -back : back;
        uint32_t bits = bits_of(single);
        bits -= near > size ? 1 : 0;
        bits |= near != size && near == near && size == size ? 1 : 0;
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
        out[i] = (bits & ~SIGN) > INFINITE ? (uint16_t)0x7fc0u : (uint16_t)rounded;
    }
}

static void narrow_rows(const float *restrict q, const float *factors, int64_t row,
                        int64_t start, uint16_t *restrict out, int n) {
    for (int i = 0; i < n;) {
        const int64_t at = (start + i) / row, left = (at + 1) * row - (start + i);
        const int end = left < n - i ? i + (int)left : n;
        narrow(q + i, factors ? factors[at] : 1.0f, out + i, end - i);
        i = end;
    }
}

static void round_block(const struct job *j, int64_t start, int n, int64_t *totals) {
    float wide[BLOCK], scaled[BLOCK], rounded[BLOCK];
    uint32_t over[BLOCK], noise[BLOCK];
    const int to_half = j->is_half && j->is_fake;
    float *out = (float *)j->out + start;
    const float *x = (const float *)j->x + start, *y;
    if (j->is_half) {
        widen((const uint16_t *)j->x + start, wide, n);
        x = wide;
    }
    y = x;
    if (j->r) {
        multiply(x, j->r, j->row, start, scaled, n);
        y = scaled;
    }
    const int direct = !to_half && !j->s; /* the grid values are the result */
    float *q = direct ? out : rounded;
    if (j->rounding == STOCHASTIC) draw(j, start, noise, n);
    if (j->is_table)
        round_table(j, y, noise, q, over, n);
    else
        ROUND_LOOPS[j->rounding](j, y, noise, q, over, n);
    if (j->counts) count(x, q, over, n, totals);
    if (!j->saturates) replace(y, over, j->over_bits, q, n);
    if (to_half)
        narrow_rows(q, j->s, j->row, start, (uint16_t *)j->out + start, n);
    else if (j->s)
        multiply(q, j->s, j->row, start, out, n);
}

/* Blocks are shared out in one run for each thread; the result does not depend on how many. */
void altcore_round(const struct job *j) {
    const int64_t blocks = (j->n + BLOCK - 1) / BLOCK;
#ifdef _OPENMP
#pragma omp parallel num_threads(j->threads) if (j->threads > 1)
#endif
    {
        int64_t totals[3] = {0, 0, 0}, id = 0, count_of = 1;
#ifdef _OPENMP
        id = omp_get_thread_num();
        count_of = omp_get_num_threads();
#endif
        const int64_t last = blocks * (id + 1) / count_of;
        for (int64_t b = blocks * id / count_of; b < last; b++) {
            const int64_t start = b * BLOCK, left = j->n - start;
            round_block(j, start, left < BLOCK ? (int)left : BLOCK, totals);
        }
        if (j->counts) {
#ifdef _OPENMP
#pragma omp critical(altcore_counts)
#endif
            for (int k = 0; k < 3; k++) j->counts[k + 1] += totals[k];
        }
    }
    if (j->counts) j->counts[0] += j->n;
}

/* So that the loader can check that both sides agree on the struct. */
int64_t altcore_job_size(void) { return (int64_t)sizeof(struct job); }

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
        int64_t id = 0, count_of = 1;
#ifdef _OPENMP
        id = omp_get_thread_num();
        count_of = omp_get_num_threads();
#endif
        largest = largest_in(x, is_half, n * id / count_of, n * (id + 1) / count_of);
    }
    (void)threads;
    return float_of(largest > INFINITE ? NOT_A_NUMBER : largest);
}
