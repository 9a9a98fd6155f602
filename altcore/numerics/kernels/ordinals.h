/* Where grid values stand among all values of a floating-point format. */

struct ordinals {
    const float *q;
    int64_t *out;
    int64_t n;
    float least;          /* the smallest normal value */
    int32_t min_normal;   /* its bits */
    int32_t cut, omitted; /* omitted: ordinals between 0 and it, where there are no subnormals */
    int32_t middle;       /* the ordinal of 0 */
    int32_t threads;
};

/* Bits of |q| + max(|q|, smallest normal value) count upwards: from one value to the next by 1 in
 * the last bit that the format has, in its subnormals and in all of its binades. */
STAGE rank_run(const struct ordinals *p, int64_t start, int n) {
    const float *restrict q = p->q + start;
    int64_t *restrict out = p->out + start;
    const struct ordinals local = *p;
    for (int i = 0; i < n; i++) {
        const float size = float_of(bits_of(q[i]) & ~SIGN);
        const float doubled = size + (size < local.least ? local.least : size);
        int32_t rank = ((int32_t)bits_of(doubled) - local.min_normal) >> local.cut;
        rank -= local.omitted;
        rank = local.omitted && rank < 0 ? 0 : rank;
        const int32_t ordinal = local.middle + ((bits_of(q[i]) & SIGN) ? -rank : rank);
        out[i] = bits_of(doubled) < INFINITE ? ordinal : -1;
    }
}
