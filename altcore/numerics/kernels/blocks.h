/* Rounding under scales that blocks share: bit for bit what altcore/numerics/block_scales.py computes.
 *
 * A tensor is seen as (outer, height, width), a block as block_height x block_width of the last
 * two, so that one of the two is 1 unless blocks are square. What is rounded at a time is a tile
 * of whole blocks: its largest magnitudes are found while it comes from memory, and the rounding
 * finds it in the cache.
 */

#define LANES 8 /* divides the usual block sizes */

enum { POWER, AMAX, TWO_LEVEL };

struct block_job {
    struct job job;              /* of the element format; its row, r and s are not used */
    const struct job *scale_job; /* TWO_LEVEL: of the scale format, which rounds by adding */
    /* one for each block, in the order of memory; or NULL */
    uint32_t *most; /* TWO_LEVEL: bits of the largest magnitudes, found beforehand */
    float *scales, *inverses;
    int64_t outer, height, width, block_height, block_width;
    int32_t rule;
    /* POWER: 2^(exponent of amax - top), one more from this fraction of amax on, within limits */
    int32_t top, threshold, lowest_power, highest_power, power_of_zero;
    float largest;  /* the element format's largest value */
    float whole, g; /* TWO_LEVEL: the tensor's largest magnitude and scale */
};

static int64_t times_in(int64_t part, int64_t whole) { return (whole + part - 1) / part; }

/* Columns of a tile: whole blocks, in rows that are long, but fit the second-level cache. */
static int64_t tile_width(const struct block_job *b) {
    int64_t most = 32768 / b->block_height;
    most = most > BLOCK ? BLOCK : most < 64 ? 64 : most;
    return b->block_width > most ? b->block_width : most / b->block_width * b->block_width;
}

static int64_t tiles_of(const struct block_job *b) {
    return b->outer * times_in(b->block_height, b->height) * times_in(tile_width(b), b->width);
}

struct place { /* of a tile */
    int64_t start, rows, columns; /* its first element, and how far it goes */
    int64_t at;                   /* its first block */
    int blocks;                   /* in a row of them */
};

static struct place place_of(const struct block_job *b, int64_t tile) {
    const int64_t step = tile_width(b), across = times_in(step, b->width);
    const int64_t bands = times_in(b->block_height, b->height), band = tile / across;
    const int64_t top = band % bands * b->block_height, left = tile % across * step;
    const int64_t below = b->height - top, beside = b->width - left;
    struct place p;
    p.start = (band / bands * b->height + top) * b->width + left;
    p.rows = below < b->block_height ? below : b->block_height;
    p.columns = beside < step ? beside : step;
    p.at = band * times_in(b->block_width, b->width) + left / b->block_width;
    p.blocks = (int)times_in(b->block_width, p.columns);
    return p;
}

/* ----------------------------------------------------------------------------- magnitudes */

INLINE uint32_t magnitude(const void *x, int is_half, int64_t i) {
    return is_half ? (uint32_t)(((const uint16_t *)x)[i] & 0x7fffu) << 16
                   : bits_of(((const float *)x)[i]) & ~SIGN;
}

INLINE void largest_below(const void *x, int is_half, int64_t start, int n,
                          uint32_t *restrict most) {
    for (int i = 0; i < n; i++) {
        const uint32_t mag = magnitude(x, is_half, start + i);
        most[i] = mag > most[i] ? mag : most[i];
    }
}

/* In two loops that vectorise: each block down to LANES numbers, and those to one. */
INLINE void largest_beside(const void *x, int is_half, int64_t start, int blocks, int width,
                           uint32_t *restrict most) {
    uint32_t lanes[BLOCK];
    for (int k = 0; k < blocks; k++) {
        for (int i = 0; i < LANES; i++) {
            uint32_t found = 0;
            for (int l = i; l < width; l += LANES) {
                const uint32_t mag = magnitude(x, is_half, start + k * width + l);
                found = mag > found ? mag : found;
            }
            lanes[k * LANES + i] = found;
        }
    }
    for (int k = 0; k < blocks; k++) {
        const uint32_t *lane = lanes + k * LANES;
        uint32_t found = most[k];
        for (int i = 0; i < LANES; i++) found = lane[i] > found ? lane[i] : found;
        most[k] = found;
    }
}

static uint32_t largest_of(const void *x, int is_half, int64_t start, int64_t n) {
    uint32_t found = 0;
    for (int64_t i = start; i < start + n; i++) {
        const uint32_t mag = magnitude(x, is_half, i);
        found = mag > found ? mag : found;
    }
    return found;
}

/* Add a row to the bits of its blocks' largest magnitudes. */
INLINE void largest_of_row(const void *x, int is_half, int64_t start, int64_t n, int64_t width,
                           uint32_t *most) {
    int64_t done = 0;
    if (width == 1) {
        largest_below(x, is_half, start, (int)n, most);
        return;
    }
    if (width == 16 || width == 32) {
        done = n / width;
        if (width == 16)
            largest_beside(x, is_half, start, (int)done, 16, most);
        else
            largest_beside(x, is_half, start, (int)done, 32, most);
    }
    for (int64_t from = done * width; from < n; from += width, done++) {
        const int64_t left = n - from;
        const uint32_t found = largest_of(x, is_half, start + from, left < width ? left : width);
        most[done] = found > most[done] ? found : most[done];
    }
}

STAGE largest_of_floats(const void *x, int64_t start, int64_t n, int64_t width, uint32_t *most) {
    largest_of_row(x, 0, start, n, width, most);
}

STAGE largest_of_halves(const void *x, int64_t start, int64_t n, int64_t width, uint32_t *most) {
    largest_of_row(x, 1, start, n, width, most);
}

/* The bits of the largest magnitude of each block of a tile. */
static void find_largest(const struct block_job *b, const struct place *p, uint32_t *most) {
    memset(most, 0, (size_t)p->blocks * sizeof *most);
    for (int64_t k = 0; k < p->rows; k++)
        (b->job.is_half ? largest_of_halves : largest_of_floats)(
            b->job.x, p->start + k * b->width, p->columns, b->block_width, most);
}

/* Keep those of a tile for when it is rounded; returns the largest. */
static uint32_t keep_largest(const struct block_job *b, int64_t tile) {
    const struct place p = place_of(b, tile);
    uint32_t largest = 0;
    find_largest(b, &p, b->most + p.at);
    for (int i = 0; i < p.blocks; i++)
        largest = b->most[p.at + i] > largest ? b->most[p.at + i] : largest;
    return largest;
}

/* --------------------------------------------------------------------------------- scales */

STAGE scale_by_powers(const struct block_job *b, const uint32_t *restrict most,
                      float *restrict rs, float *restrict ss, int n) {
    const int32_t top = b->top, lowest = b->lowest_power, highest = b->highest_power;
    const int32_t threshold = b->threshold, of_zero = b->power_of_zero;
    for (int i = 0; i < n; i++) {
        const int subnormal = most[i] < 0x00800000u;
        const uint32_t bits =
            subnormal ? bits_of(float_of(most[i]) * 0x1p24f) : most[i]; /* exponents are in it */
        int32_t k = (int32_t)(bits >> 23) - (subnormal ? 151 : 127) - top;
        k += (int32_t)(bits & 0x007fffffu) >= threshold ? 1 : 0;
        k = k < lowest ? lowest : k > highest ? highest : k;
        k = most[i] == 0 ? of_zero : k;
        const int lost = most[i] >= INFINITE;
        rs[i] = lost ? float_of(NOT_A_NUMBER) : power_of_two(-k);
        ss[i] = lost ? float_of(NOT_A_NUMBER) : power_of_two(k);
    }
}

STAGE scale_by_amax(const struct block_job *b, const uint32_t *restrict most, float *restrict rs,
                    float *restrict ss, int n) {
    const float top = b->largest, finite = float_of(INFINITE - 1);
    for (int i = 0; i < n; i++) {
        const float m = float_of(most[i]);
        float s = m / top, r = top / m;
        s = s < 0x1p-128f ? 0x1p-128f : s > finite ? finite : s;
        r = r > finite ? finite : r;
        const float other = most[i] == 0 ? 1.0f : float_of(NOT_A_NUMBER);
        const int usable = most[i] != 0 && most[i] < INFINITE;
        rs[i] = usable ? r : other;
        ss[i] = usable ? s : other;
    }
}

STAGE scale_by_two_levels(const struct block_job *b, const uint32_t *restrict most,
                          float *restrict rs, float *restrict ss, int n) {
    const struct job scale = *b->scale_job;
    const float top = b->largest, g = b->g, finite = float_of(INFINITE - 1);
    const int lost = bits_of(b->whole) >= INFINITE;
    for (int i = 0; i < n; i++) {
        const float m = float_of(most[i]), wanted = m / top / g;
        const float rounded = round_by_adding(&scale, wanted);
        const float s = most[i] != 0 && g > 0.0f ? rounded : 0.0f;
        const float total = s * g, inverse = 1.0f / total;
        const float r = total > 0.0f ? (inverse > finite ? finite : inverse) : 0.0f;
        rs[i] = lost ? float_of(NOT_A_NUMBER) : r;
        ss[i] = lost ? float_of(NOT_A_NUMBER) : s;
    }
}

static void find_scales(const struct block_job *b, const uint32_t *most, float *rs, float *ss,
                        int n) {
    if (b->rule == POWER)
        scale_by_powers(b, most, rs, ss, n);
    else if (b->rule == AMAX)
        scale_by_amax(b, most, rs, ss, n);
    else
        scale_by_two_levels(b, most, rs, ss, n);
}

/* The smallest scale of a block that is not all zeros. */
static float least_scale(const uint32_t *most, const float *ss, int n) {
    float least = INFINITY;
    for (int i = 0; i < n; i++) least = most[i] != 0 && ss[i] < least ? ss[i] : least;
    return least;
}

INLINE void repeat(const float *restrict numbers, int64_t times, float *restrict each, int n) {
    for (int i = 0; i < n; numbers++)
        if (n - i >= times)
            for (int k = 0; k < times; k++) each[i++] = *numbers;
        else
            while (i < n) each[i++] = *numbers;
}

/* One number for each element of a row from those of its blocks. */
STAGE spread(const float *numbers, int64_t width, float *each, int n) {
    if (width == 16)
        repeat(numbers, 16, each, n);
    else if (width == 32)
        repeat(numbers, 32, each, n);
    else
        repeat(numbers, width, each, n);
}
