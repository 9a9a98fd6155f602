/* Rounding tiles of blocks: the usual case in loops of its own, and any case.
 *
 * The usual case is to nearest even in formats that round by adding. NaN is not carried along, as
 * elsewhere: a block with one has a scale that is NaN. */

struct tile {
    const void *x;
    void *out;
    int64_t rows, columns, stride, width; /* of blocks */
    float rs[BLOCK], ss[BLOCK], g;        /* one for each block or, across rows, each column */
    uint32_t limits[BLOCK], leasts[BLOCK];
};

/* Under powers of two nothing needs to be multiplied: instead, the bits of the format's largest
 * and least normal value are moved to the block's binade. False where float32 has no room. */
static int move_to_binades(const struct block_job *b, const uint32_t *most, struct tile *t,
                           int n) {
    const struct job *j = &b->job;
    const uint32_t limit = bits_of(j->max), least = j->min_normal, to_magic = j->to_magic;
    uint32_t unsafe = b->rule != POWER || least < bits_of(0x1p-100f);
    for (int i = 0; i < n; i++) {
        const uint32_t moved = most[i] ? bits_of(t->ss[i]) - bits_of(1.0f) : 0;
        t->limits[i] = limit + moved;
        t->leasts[i] = least + moved;
        unsafe |= (int32_t)t->leasts[i] < 0x00800000 ? 1 : 0;
        unsafe |= t->limits[i] + to_magic >= INFINITE ? 1 : 0;
    }
    return !unsafe;
}

INLINE float add_between(float x, uint32_t limit, uint32_t least, uint32_t to_magic) {
    const uint32_t mag = bits_of(x) & ~SIGN;
    const uint32_t inside = (int32_t)mag < (int32_t)limit ? mag : limit;
    const uint32_t exponent = inside & INFINITE;
    const float magic =
        float_of(((int32_t)exponent > (int32_t)least ? exponent : least) + to_magic);
    return float_of(bits_of((float_of(inside) + magic) - magic) | (bits_of(x) & SIGN));
}

/* `width` 1: across rows, each column is a block. `levels`: 0 for binades; 1 or 2 multiplications
 * by scales. */
INLINE void add_in_tile(const struct job *j, const struct tile *t, int width, int levels,
                        int is_half, int how) {
    const float *restrict rs = t->rs, *restrict ss = t->ss;
    const uint32_t *restrict limits = t->limits, *restrict leasts = t->leasts;
    const uint32_t to_magic = j->to_magic, limit = bits_of(j->max), least = j->min_normal;
    const float g = t->g;
    for (int64_t row = 0; row < t->rows; row++) {
        const int64_t start = row * t->stride;
        const void *restrict x = (const char *)t->x + start * (is_half ? 2 : 4);
        void *restrict out = (char *)t->out + start * (how == TO_FLOAT ? 4 : 2);
        for (int k = 0; k < t->columns / width; k++) {
            for (int i = k * width; i < (k + 1) * width; i++) {
                const float wide = load(x, is_half, i);
                const float q = levels
                                    ? add_between(wide * rs[k], limit, least, to_magic) * ss[k]
                                    : add_between(wide, limits[k], leasts[k], to_magic);
                store(out, how, i, levels == 2 ? q * g : q);
            }
        }
    }
}

#define WIDTH(NAME, SIZE)                                                                      \
    STAGE NAME(const struct job *j, const struct tile *t, int levels, int how) {               \
        if (j->is_half && how == CUT_TO_HALF)                                                  \
            add_in_tile(j, t, SIZE, 0, 1, CUT_TO_HALF);                                        \
        else if (j->is_half && how == TO_HALF)                                                 \
            add_in_tile(j, t, SIZE, 2, 1, TO_HALF);                                            \
        else if (j->is_half && levels == 0)                                                    \
            add_in_tile(j, t, SIZE, 0, 1, TO_FLOAT);                                           \
        else if (j->is_half)                                                                   \
            add_in_tile(j, t, SIZE, 1, 1, TO_FLOAT);                                           \
        else if (levels == 0)                                                                  \
            add_in_tile(j, t, SIZE, 0, 0, TO_FLOAT);                                           \
        else if (levels == 1)                                                                  \
            add_in_tile(j, t, SIZE, 1, 0, TO_FLOAT);                                           \
        else                                                                                   \
            add_in_tile(j, t, SIZE, 2, 0, TO_FLOAT);                                           \
    }

WIDTH(add_in_rows, 1)
WIDTH(add_in_16, 16)
WIDTH(add_in_32, 32)

/* How the usual case writes results; -1 where it does not apply. */
static int way_of(const struct block_job *b) {
    const struct job *j = &b->job, *scale = b->scale_job;
    if (j->is_table || loop_of(j) != adding) return -1;
    if (!j->to_half) return TO_FLOAT;
    if (b->rule == POWER) return j->cut >= 16 ? CUT_TO_HALF : -1;
    if (b->rule == AMAX) return -1;
    const int digits = 48 - (int)(j->cut + scale->cut);
    const double least = (double)j->smallest * scale->smallest * b->g;
    return digits > 8 || rounds_twice(digits, b->g, least) ? -1 : TO_HALF;
}

/* Count, and sum up the squared errors of, a row of a tile whose scales are powers of two, from
 * what came out. False where a sum is not to be trusted. */
INLINE int compare(const void *restrict x, const void *restrict out, int is_half, int how, int n,
                   struct totals *totals) {
    float noise = 0.0f, signal = 0.0f;
    int32_t zeros = 0, were_zero = 0;
#pragma omp simd reduction(+ : noise, signal, zeros, were_zero)
    for (int i = 0; i < n; i++) {
        const float was = load(x, is_half, i), q = load(out, how != TO_FLOAT, i);
        const float error = q - was;
        noise = add_square(noise, error);
        signal = add_square(signal, was);
        zeros += q == 0.0f ? 1 : 0;
        were_zero += was == 0.0f ? 1 : 0;
    }
    if (!(noise > 0x1p-60f && noise < 0x1p100f && signal > 0x1p-60f && signal < 0x1p100f))
        return 0; /* or NaN */
    totals->noise += noise;
    totals->signal += signal;
    totals->counts[2] += zeros - were_zero;
    return 1;
}

STAGE count_above(const void *x, int is_half, int64_t n, uint32_t top, int64_t *count) {
    int32_t found = 0;
    for (int64_t i = 0; i < n; i++) found += magnitude(x, is_half, i) >= top ? 1 : 0;
    *count += found;
}

STAGE compare_piece(const void *x, const void *out, int is_half, int how, int n,
                    struct totals *totals, int *done) {
    if (!is_half)
        *done = compare(x, out, 0, TO_FLOAT, n, totals);
    else if (how == TO_FLOAT)
        *done = compare(x, out, 1, TO_FLOAT, n, totals);
    else
        *done = compare(x, out, 1, CUT_TO_HALF, n, totals);
}

/* The same for all of a tile in a row, after it was rounded; all or nothing. */
static int compare_tile(const struct block_job *b, const uint32_t *most, const struct tile *t,
                        int how, struct totals *totals) {
    const struct job *j = &b->job;
    const int64_t in = j->is_half ? 2 : 4, to = how == TO_FLOAT ? 4 : 2;
    struct totals found = {{0, 0, 0, 0}, 0.0, 0.0};
    for (int64_t i = 0; i < t->columns; i += SUMMED) {
        const int n = t->columns - i < SUMMED ? (int)(t->columns - i) : SUMMED;
        int done = 0;
        compare_piece((const char *)t->x + i * in, (const char *)t->out + i * to, j->is_half, how,
                      n, &found, &done);
        if (!done) return 0;
    }
    for (int64_t k = 0; k < t->columns / t->width; k++) { /* few reach that far */
        const uint32_t top = bits_of(j->top) + bits_of(t->ss[k]) - bits_of(1.0f);
        if (most[k] && most[k] >= top)
            count_above((const char *)t->x + k * t->width * in, j->is_half, t->width, top,
                        &found.counts[1]);
    }
    for (int k = 1; k < 3; k++) totals->counts[k] += found.counts[k];
    totals->noise += found.noise;
    totals->signal += found.signal;
    return 1;
}

/* False where it is not the usual case. */
static int round_usual(const struct block_job *b, const uint32_t *most, struct tile *t, int n,
                       int how, struct totals *totals) {
    const struct job *j = &b->job;
    const int measured = j->counts || j->errors;
    const int fits = t->rows == 1 && t->columns % t->width == 0 && t->width > 1;
    if (how < 0 || !(fits ? t->width == 16 || t->width == 32 : t->width == 1)) return 0;
    if (measured && !fits) return 0;
    const int is_global = b->rule == TWO_LEVEL && j->is_fake;
    const int levels = move_to_binades(b, most, t, n) ? 0 : is_global ? 2 : 1;
    if (levels && (measured || how == CUT_TO_HALF)) return 0;
    (t->width == 16 ? add_in_16 : t->width == 32 ? add_in_32 : add_in_rows)(j, t, levels, how);
    return !measured || compare_tile(b, most, t, how, totals);
}

/* ------------------------------------------------------------------------------- any case */

/* Round elements of one row; `least`: the smallest scale among them. */
static void round_run(const struct block_job *b, int64_t start, int n, const float *rs,
                      const float *ss, float least, struct totals *totals) {
    const struct job *j = &b->job;
    float wide[BLOCK], grid[BLOCK];
    const int to_half = j->to_half, apart = to_half || j->errors;
    const int two_level = b->rule == TWO_LEVEL;
    const float g = two_level && j->is_fake ? b->g : 1.0f;
    const float *x = (const float *)j->x + start;
    float *out = (float *)j->out + start; /* floats, unless to_half */
    if (j->is_half) {
        widen((const uint16_t *)j->x + start, wide, n);
        x = wide;
    }
    struct part p = {x, out, start, n, 1.0f, g, rs, ss};
    const int measures = j->errors && !j->is_table && loop_of(j) == adding;
    if (measures) {
        measure(j, &p, to_half ? grid : 0, totals);
    } else {
        if (apart) p.out = grid, p.ss = ones, p.s = 1.0f;
        (j->is_table ? round_table : loop_of(j))(j, &p, totals->counts);
        p.out = to_half ? 0 : out, p.ss = ss, p.s = g;
        if (j->errors) add_errors(j, &p, grid, totals);
    }
    if (to_half && two_level) {
        const double product = (double)j->smallest * b->scale_job->smallest;
        multiply_each(grid, ss, 1.0f, wide, n);
        narrow(wide, g, product * g, (uint16_t *)j->out + start, n);
    } else if (to_half) {
        narrow_each(grid, ss, (double)j->smallest * least, (uint16_t *)j->out + start, n);
    }
}

static void round_tile(const struct block_job *b, int64_t tile, int how,
                       struct totals *totals) {
    const struct job *j = &b->job;
    const struct place p = place_of(b, tile);
    const int64_t width = b->block_width, start = p.start, at = p.at;
    const int blocks = p.blocks;
    uint32_t found[BLOCK];
    const uint32_t *most = b->most ? b->most + at : found;
    if (!b->most) find_largest(b, &p, found);
    struct tile t;
    t.x = (const char *)j->x + start * (j->is_half ? 2 : 4);
    t.out = (char *)j->out + start * (j->to_half ? 2 : 4);
    t.rows = p.rows, t.columns = p.columns, t.stride = b->width, t.width = width, t.g = b->g;
    find_scales(b, most, t.rs, t.ss, blocks);
    if (b->scales) memcpy(b->scales + at, t.ss, (size_t)blocks * sizeof *t.ss);
    if (b->inverses) memcpy(b->inverses + at, t.rs, (size_t)blocks * sizeof *t.rs);
    if (round_usual(b, most, &t, blocks, how, totals)) return;
    const float least = least_scale(most, t.ss, blocks);
    float each_r[BLOCK], each_s[BLOCK];
    for (int64_t from = 0; from < p.columns; from += BLOCK) { /* more than one: of a long block */
        const int n = p.columns - from < BLOCK ? (int)(p.columns - from) : BLOCK;
        if (width > 1) spread(t.rs, width, each_r, n), spread(t.ss, width, each_s, n);
        for (int64_t k = 0; k < p.rows; k++)
            round_run(b, start + k * b->width + from, n, width > 1 ? each_r : t.rs,
                      width > 1 ? each_s : t.ss, least, totals);
    }
}
