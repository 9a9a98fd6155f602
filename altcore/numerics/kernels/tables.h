/* Rounding to a format given by its values: bit for bit what torch_rounding.py computes. */

/* The payload of each number's gap between thresholds: a value's bits, or the gap's index.
 * In a small table: every threshold that a number reaches changes the payload's bits. */
STAGE find_among_few(const struct few *few, const float *restrict y, uint32_t *restrict gap,
                     int n) {
    for (int i = 0; i < n; i++) gap[i] = few->first;
    for (int k = 0; k < FEW; k += 4) { /* as many as registers hold */
        const float *t = few->threshold + k;
        const uint32_t *c = few->change + k;
        const float t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3];
        const uint32_t c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
        for (int i = 0; i < n; i++) {
            const uint32_t low = (y[i] >= t0 ? c0 : 0) ^ (y[i] >= t1 ? c1 : 0);
            const uint32_t high = (y[i] >= t2 ? c2 : 0) ^ (y[i] >= t3 ? c3 : 0);
            gap[i] ^= low ^ high;
        }
    }
}

/* In a large one: by the bucket that a number's top bits name. A bucket has at most one threshold
 * in it; its entry holds the gap below that, and in the lowest shift + 1 bits how far into the
 * bucket it lies. What is looked up is so little that it stays in the first-level cache, in loops
 * of their own, as no vector unit does that faster. */
STAGE find_in_buckets(const struct job *j, const float *restrict y, uint32_t *restrict gap,
                      int n) {
    const uint32_t low = j->bucket_low, high = j->bucket_high, shift = j->bucket_shift;
    const uint32_t half = (uint32_t)j->buckets, inner = (1u << shift) - 1;
    const uint32_t *restrict entries = j->entries, *restrict payloads = j->payloads;
    uint32_t found[PIECE], depth[PIECE];
    for (int i = 0; i < n; i++) {
        const uint32_t bits = bits_of(y[i]), mag = bits & ~SIGN;
        uint32_t inside = (int32_t)mag < (int32_t)low ? low : mag;
        inside = ((int32_t)inside > (int32_t)high ? high : inside) - low;
        depth[i] = inside & inner;
        found[i] = (inside >> shift) + (bits & SIGN ? half : 0);
    }
    for (int i = 0; i < n; i++) found[i] = entries[found[i]];
    for (int i = 0; i < n; i++) {
        const uint32_t away = bits_of(y[i]) & SIGN ? ~0u : 1, at = found[i] & (2 * inner + 1);
        found[i] = (found[i] >> shift >> 1) + ((int32_t)depth[i] >= (int32_t)at ? away : 0);
    }
    for (int i = 0; i < n; i++) gap[i] = payloads[found[i]];
}

/* In one whose thresholds lie too close for that, and of single numbers: by bisection. */
static uint32_t search(const struct job *j, float y) {
    int64_t first = 0, length = j->threshold_count;
    while (length > 0) {
        const int64_t step = (length + 1) / 2, right = j->thresholds[first + step - 1] <= y;
        first += right ? step : 0;
        length = right ? length - step : step - 1;
    }
    return j->payloads[first];
}

STAGE find_by_search(const struct job *j, const float *restrict y, uint32_t *restrict gap,
                     int n) {
    for (int i = 0; i < n; i++) gap[i] = search(j, y[i]);
}

/* Where the values of a binade are evenly spaced, as posits' are in all but the outermost ones,
 * adding a power of two rounds, as in round_by_adding: `magics` has it for each exponent, or 0
 * where it would not do. Numbers there, zeros apart, are searched for; false if they are many. */
static __attribute__((noinline)) int round_in_binades(const struct job *j,
                                                      const float *restrict y,
                                                      uint32_t *restrict gap, int n) {
    const float *restrict magics = j->magics;
    float magic[PIECE];
    uint8_t lost[PIECE];
    uint32_t missing = 0;
    for (int i = 0; i < n; i++) magic[i] = magics[(bits_of(y[i]) & ~SIGN) >> 23];
    for (int i = 0; i < n; i++) {
        const uint32_t mag = bits_of(y[i]) & ~SIGN;
        const float size = (float_of(mag) + magic[i]) - magic[i];
        lost[i] = magic[i] == 0.0f && mag ? 1 : 0;
        missing += lost[i];
        gap[i] = bits_of(size) | (bits_of(y[i]) & SIGN);
    }
    if (missing > PIECE / 16) return 0;
    for (int i = 0; missing; i++, missing--) {
        i = (int)((const uint8_t *)memchr(lost + i, 1, (size_t)(n - i)) - lost);
        gap[i] = search(j, y[i]);
    }
    return 1;
}

/* Draw one of the two ends of each number's gap, with float64 distances as in torch_rounding.py. */
STAGE draw_values(const struct job *j, const float *restrict y, int64_t start,
                  uint32_t *restrict gap, uint32_t *restrict over, int n) {
    const uint32_t first = first_draw(j, start), second = second_key(j, start);
    const struct ends *restrict ends = j->ends;
    const uint32_t centre = j->centre, mirrored = j->mirrored;
    const uint32_t bits = j->random_bits < 23 ? j->random_bits : 23;
    const double steps = (double)(1u << bits), offset = 1.0 - (double)j->half;
    uint32_t noise[PIECE];
    for (int i = 0; i < n; i++)
        noise[i] = ~draw(first + (uint32_t)i * DRAW_STEP, second) >> (32 - bits);
    for (int i = 0; i < n; i++) {
        const struct ends *e = ends + (gap[i] == centre && y[i] >= 0.0f ? mirrored : gap[i]);
        const double distance = fabs((double)y[i] - e->inner) * steps;
        const double drawn = ((double)noise[i] + offset) * e->width;
        const int away = distance >= drawn;
        gap[i] = e->payload[away];
        over[i] = e->over[away];
    }
}

STAGE find_overflows(const struct job *j, const float *restrict y, uint32_t *restrict over,
                     int n) {
    const float bottom = j->bottom, top = j->top;
    for (int i = 0; i < n; i++) over[i] = (y[i] < bottom ? 1 : 0) | (y[i] >= top ? 1 : 0);
}

/* From payloads to values: the signs of zeros, overflows that are not to saturate, NaN. */
STAGE finish(const struct job *j, const float *restrict y, const uint32_t *restrict over,
             const uint32_t *restrict gap, float *restrict q, int n) {
    const uint32_t replaces = j->saturates ? 0 : 1, over_bits = j->over_bits;
    for (int i = 0; i < n; i++) {
        const uint32_t bits = bits_of(y[i]), sign = bits & SIGN;
        const uint32_t lost = over[i] & replaces;
        uint32_t found = (gap[i] & ~SIGN) == 0 ? sign : gap[i];
        /* the side that overflowed: the saturated value lies between it and the grid */
        found = lost ? over_bits | (y[i] < float_of(found) ? SIGN : 0) : found;
        q[i] = float_of((int32_t)(bits & ~SIGN) > (int32_t)INFINITE ? NOT_A_NUMBER : found);
    }
}

STAGE multiply(const float *restrict a, float factor, float *restrict product, int n) {
    for (int i = 0; i < n; i++) product[i] = a[i] * factor;
}

STAGE multiply_each(const float *restrict a, const float *restrict factors, float factor,
                    float *restrict product, int n) {
    for (int i = 0; i < n; i++) product[i] = (a[i] * factors[i]) * factor;
}

STAGE count(const float *restrict x, const float *restrict y, const uint32_t *restrict over,
            const float *restrict q, int n, int64_t *totals) {
    uint32_t passed = 0, flushed = 0, nonfinite = 0;
    for (int i = 0; i < n; i++) {
        const uint32_t was = bits_of(x[i]) & ~SIGN;
        const uint32_t finite = ((INFINITE - 1 - was) >> 31) ^ 1;
        const uint32_t inside = y[i] != y[i] || over[i] == 0 ? 1 : 0;
        passed += finite & (inside ^ 1);
        flushed += finite & inside & (q[i] == 0.0f ? 1 : 0) & (was ? 1 : 0);
        nonfinite += finite ^ 1;
    }
    totals[1] += passed;
    totals[2] += flushed;
    totals[3] += nonfinite;
}

static void round_piece(const struct job *j, const struct part *p, int64_t *totals) {
    float scaled[PIECE], q[PIECE];
    uint32_t gap[PIECE], over[PIECE] = {0};
    const float *y = p->x;
    float *grid = !p->ss && p->s == 1.0f ? p->out : q;
    if (p->rs) {
        multiply_each(p->x, p->rs, 1.0f, scaled, p->n);
        y = scaled;
    } else if (p->r != 1.0f) { /* NaN is not 1 */
        multiply(p->x, p->r, scaled, p->n);
        y = scaled;
    }
    if (j->few)
        find_among_few(j->few, y, gap, p->n);
    else if (!j->magics || !round_in_binades(j, y, gap, p->n))
        (j->buckets ? find_in_buckets : find_by_search)(j, y, gap, p->n);
    if (j->rounding == STOCHASTIC)
        draw_values(j, y, p->start, gap, over, p->n);
    else if (j->counts || !j->saturates)
        find_overflows(j, y, over, p->n);
    finish(j, y, over, gap, grid, p->n);
    if (j->counts) count(p->x, y, over, grid, p->n, totals);
    if (p->ss)
        multiply_each(q, p->ss, p->s, p->out, p->n);
    else if (grid == q)
        multiply(q, p->s, p->out, p->n);
}

/* In pieces, so that all their buffers and the buckets fit the first-level cache. */
static void round_table(const struct job *j, const struct part *p, int64_t *totals) {
    for (int i = 0; i < p->n; i += PIECE) {
        const int n = p->n - i < PIECE ? p->n - i : PIECE;
        const float *rs = p->rs ? p->rs + i : 0, *ss = p->rs ? p->ss + i : 0;
        const struct part piece = {p->x + i, p->out + i, p->start + i, n, p->r, p->s, rs, ss};
        round_piece(j, &piece, totals);
    }
}
