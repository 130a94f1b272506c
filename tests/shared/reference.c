#include "tests/shared/reference.h"
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include <math.h>
#include <string.h>

/* Everything that one sequence computes in one block. Shapes: T tokens, C channels, H heads. */
struct block_state {
    double *x;             /* [T, C]: the input */
    double *norm1;         /* [T, C] */
    double *qkv;           /* [T, 3C] */
    double *probabilities; /* [H, T, T] */
    double *attended;      /* [T, C] */
    double *middle;        /* [T, C] */
    double *norm2;         /* [T, C] */
    double *pre, *act;     /* [T, 4C] */
};

struct state {
    uint32_t seq, channels, heads, vocab, layers;
    struct block_state *blocks; /* [layers] */
    double *x;                  /* [T, C]: the last block's output */
    double *normal;             /* [T, C] */
    double *logits;             /* [T, V] */
};

static double *doubles(uint64_t count)
{
    return mem_alloc(count, sizeof(double));
}

/* -- Pieces: each forward beside its backward -- */

/* y[T, out] = x[T, in] w[in, out] + bias. */
static void linear(const double *x, const double *w, const double *bias, double *y, uint32_t seq,
                   uint32_t in, uint32_t out)
{
    for (uint32_t t = 0; t < seq; t++) {
        for (uint32_t o = 0; o < out; o++)
            y[t * out + o] = bias[o];
        for (uint32_t i = 0; i < in; i++)
            for (uint32_t o = 0; o < out; o++)
                y[t * out + o] += x[t * in + i] * w[i * out + o];
    }
}

static void linear_backward(const double *x, const double *w, const double *dy, double *dx,
                            double *dw, double *dbias, uint32_t seq, uint32_t in, uint32_t out)
{
    for (uint32_t t = 0; t < seq; t++) {
        for (uint32_t o = 0; o < out; o++)
            dbias[o] += dy[t * out + o];
        for (uint32_t i = 0; i < in; i++) {
            double sum = 0.0;
            for (uint32_t o = 0; o < out; o++) {
                sum += dy[t * out + o] * w[i * out + o];
                dw[i * out + o] += x[t * in + i] * dy[t * out + o];
            }
            dx[t * in + i] = sum;
        }
    }
}

static void norm(const double *x, const double *weight, const double *bias, double *y, uint32_t seq,
                 uint32_t channels, double epsilon)
{
    for (uint32_t t = 0; t < seq; t++, x += channels, y += channels) {
        double mean = 0.0, variance = 0.0;
        for (uint32_t i = 0; i < channels; i++)
            mean += x[i] / channels;
        for (uint32_t i = 0; i < channels; i++)
            variance += (x[i] - mean) * (x[i] - mean) / channels;
        for (uint32_t i = 0; i < channels; i++)
            y[i] = (x[i] - mean) / sqrt(variance + epsilon) * weight[i] + bias[i];
    }
}

/* Adds to dx. By the chain rule through mean and variance, term by term. */
static void norm_backward(const double *x, const double *weight, const double *dy, double *dx,
                          double *dweight, double *dbias, uint32_t seq, uint32_t channels,
                          double epsilon)
{
    for (uint32_t t = 0; t < seq; t++, x += channels, dy += channels, dx += channels) {
        double mean = 0.0, variance = 0.0, dmean = 0.0, dvariance = 0.0;
        for (uint32_t i = 0; i < channels; i++)
            mean += x[i] / channels;
        for (uint32_t i = 0; i < channels; i++)
            variance += (x[i] - mean) * (x[i] - mean) / channels;
        double deviation = sqrt(variance + epsilon);
        for (uint32_t i = 0; i < channels; i++) {
            double centred = x[i] - mean, g = dy[i] * weight[i];
            dweight[i] += dy[i] * centred / deviation;
            dbias[i] += dy[i];
            dvariance += g * centred * -0.5 / (deviation * deviation * deviation);
            dmean -= g / deviation;
        }
        for (uint32_t i = 0; i < channels; i++)
            dx[i] += dy[i] * weight[i] / deviation + dvariance * 2.0 * (x[i] - mean) / channels +
                     dmean / channels;
    }
}

static double gelu(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x)
{
    double t = tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x));
    double du = sqrt(2.0 / M_PI) * (1.0 + 3.0 * 0.044715 * x * x);
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du;
}

/* row[0..count) becomes its softmax; returns log sum exp. */
static double softmax(double *row, uint32_t count)
{
    double most = row[0], sum = 0.0;
    for (uint32_t i = 1; i < count; i++)
        most = fmax(most, row[i]);
    for (uint32_t i = 0; i < count; i++)
        sum += exp(row[i] - most);
    for (uint32_t i = 0; i < count; i++)
        row[i] = exp(row[i] - most) / sum;
    return most + log(sum);
}

static void attention(const struct state *s, struct block_state *b)
{
    uint32_t c = s->channels, depth = c / s->heads, seq = s->seq;
    for (uint32_t h = 0; h < s->heads; h++) {
        for (uint32_t t = 0; t < seq; t++) {
            double *p = b->probabilities + ((size_t)h * seq + t) * seq;
            for (uint32_t u = 0; u <= t; u++) {
                p[u] = 0.0;
                for (uint32_t i = h * depth; i < (h + 1) * depth; i++)
                    p[u] += b->qkv[t * 3 * c + i] * b->qkv[u * 3 * c + c + i] / sqrt(depth);
            }
            softmax(p, t + 1);
            for (uint32_t i = h * depth; i < (h + 1) * depth; i++) {
                b->attended[t * c + i] = 0.0;
                for (uint32_t u = 0; u <= t; u++)
                    b->attended[t * c + i] += p[u] * b->qkv[u * 3 * c + 2 * c + i];
            }
        }
    }
}

/* dqkv starts at zero. */
static void attention_backward(const struct state *s, const struct block_state *b,
                               const double *dout, double *dqkv)
{
    uint32_t c = s->channels, depth = c / s->heads, seq = s->seq;
    double *dp = doubles(seq);
    for (uint32_t h = 0; h < s->heads; h++) {
        for (uint32_t t = 0; t < seq; t++) {
            const double *p = b->probabilities + ((size_t)h * seq + t) * seq;
            double mean = 0.0;
            for (uint32_t u = 0; u <= t; u++) {
                dp[u] = 0.0;
                for (uint32_t i = h * depth; i < (h + 1) * depth; i++) {
                    dp[u] += dout[t * c + i] * b->qkv[u * 3 * c + 2 * c + i];
                    dqkv[u * 3 * c + 2 * c + i] += p[u] * dout[t * c + i];
                }
                mean += p[u] * dp[u];
            }
            for (uint32_t u = 0; u <= t; u++) {
                double ds = p[u] * (dp[u] - mean) / sqrt(depth);
                for (uint32_t i = h * depth; i < (h + 1) * depth; i++) {
                    dqkv[t * 3 * c + i] += ds * b->qkv[u * 3 * c + c + i];
                    dqkv[u * 3 * c + c + i] += ds * b->qkv[t * 3 * c + i];
                }
            }
        }
    }
    mem_free(dp);
}

/* -- The model on one sequence -- */

static void state_init(struct state *s, const struct config *config, uint32_t seq)
{
    uint64_t c = config->channels;
    *s = (struct state){.seq = seq,
                        .channels = config->channels,
                        .heads = config->heads,
                        .vocab = config->vocab,
                        .layers = config->layers};
    s->blocks = mem_alloc(config->layers, sizeof(*s->blocks));
    for (uint32_t l = 0; l < config->layers; l++)
        s->blocks[l] = (struct block_state){
            .x = doubles(seq * c),
            .norm1 = doubles(seq * c),
            .qkv = doubles(seq * 3 * c),
            .probabilities = doubles((uint64_t)config->heads * seq * seq),
            .attended = doubles(seq * c),
            .middle = doubles(seq * c),
            .norm2 = doubles(seq * c),
            .pre = doubles(seq * 4 * c),
            .act = doubles(seq * 4 * c),
        };
    s->x = doubles(seq * c);
    s->normal = doubles(seq * c);
    s->logits = doubles((uint64_t)seq * config->vocab);
}

static void state_deinit(struct state *s)
{
    for (uint32_t l = 0; l < s->layers; l++) {
        struct block_state *b = &s->blocks[l];
        double *owned[] = {b->x,     b->norm1, b->qkv, b->probabilities, b->attended, b->middle,
                           b->norm2, b->pre,   b->act};
        for (size_t i = 0; i < ARRAY_COUNT(owned); i++)
            mem_free(owned[i]);
    }
    mem_free(s->blocks);
    mem_free(s->x);
    mem_free(s->normal);
    mem_free(s->logits);
}

static double **block_tensors(double **list, const struct reference *r, uint32_t layer)
{
    return list + r->tensors->groups[layer + 1].first_tensor;
}

static double **final_tensors(double **list, const struct reference *r)
{
    return list + r->tensors->groups[r->config.layers + 1].first_tensor;
}

static void block_forward(const struct reference *r, const struct state *s, struct block_state *b,
                          uint32_t layer, double *out)
{
    double **w = block_tensors(r->weights, r, layer);
    uint32_t seq = s->seq, c = s->channels;
    double epsilon = r->config.norm_epsilon;
    norm(b->x, w[BLOCK_LN1_WEIGHT], w[BLOCK_LN1_BIAS], b->norm1, seq, c, epsilon);
    linear(b->norm1, w[BLOCK_QKV_WEIGHT], w[BLOCK_QKV_BIAS], b->qkv, seq, c, 3 * c);
    attention(s, b);
    linear(b->attended, w[BLOCK_PROJ_WEIGHT], w[BLOCK_PROJ_BIAS], b->middle, seq, c, c);
    for (uint32_t i = 0; i < seq * c; i++)
        b->middle[i] += b->x[i];
    norm(b->middle, w[BLOCK_LN2_WEIGHT], w[BLOCK_LN2_BIAS], b->norm2, seq, c, epsilon);
    linear(b->norm2, w[BLOCK_FC_WEIGHT], w[BLOCK_FC_BIAS], b->pre, seq, c, 4 * c);
    for (uint32_t i = 0; i < seq * 4 * c; i++)
        b->act[i] = gelu(b->pre[i]);
    linear(b->act, w[BLOCK_OUT_WEIGHT], w[BLOCK_OUT_BIAS], out, seq, 4 * c, c);
    for (uint32_t i = 0; i < seq * c; i++)
        out[i] += b->middle[i];
}

/* dx: in, of the block's output; out, of its input. */
static void block_backward(struct reference *r, const struct state *s, const struct block_state *b,
                           uint32_t layer, double *dx)
{
    double **w = block_tensors(r->weights, r, layer), **g = block_tensors(r->gradients, r, layer);
    uint32_t seq = s->seq, c = s->channels;
    double epsilon = r->config.norm_epsilon;
    double *wide = doubles((uint64_t)seq * 4 * c), *narrow = doubles((uint64_t)seq * c);
    double *dqkv = doubles((uint64_t)seq * 3 * c);
    linear_backward(b->act, w[BLOCK_OUT_WEIGHT], dx, wide, g[BLOCK_OUT_WEIGHT], g[BLOCK_OUT_BIAS],
                    seq, 4 * c, c);
    for (uint32_t i = 0; i < seq * 4 * c; i++)
        wide[i] *= gelu_slope(b->pre[i]);
    linear_backward(b->norm2, w[BLOCK_FC_WEIGHT], wide, narrow, g[BLOCK_FC_WEIGHT],
                    g[BLOCK_FC_BIAS], seq, c, 4 * c);
    norm_backward(b->middle, w[BLOCK_LN2_WEIGHT], narrow, dx, g[BLOCK_LN2_WEIGHT],
                  g[BLOCK_LN2_BIAS], seq, c, epsilon);
    linear_backward(b->attended, w[BLOCK_PROJ_WEIGHT], dx, narrow, g[BLOCK_PROJ_WEIGHT],
                    g[BLOCK_PROJ_BIAS], seq, c, c);
    attention_backward(s, b, narrow, dqkv);
    linear_backward(b->norm1, w[BLOCK_QKV_WEIGHT], dqkv, narrow, g[BLOCK_QKV_WEIGHT],
                    g[BLOCK_QKV_BIAS], seq, c, 3 * c);
    norm_backward(b->x, w[BLOCK_LN1_WEIGHT], narrow, dx, g[BLOCK_LN1_WEIGHT], g[BLOCK_LN1_BIAS],
                  seq, c, epsilon);
    mem_free(wide);
    mem_free(narrow);
    mem_free(dqkv);
}

static void forward(const struct reference *r, struct state *s, const uint32_t *tokens)
{
    uint32_t seq = s->seq, c = s->channels;
    const double *wte = r->weights[0], *wpe = r->weights[1];
    for (uint32_t t = 0; t < seq; t++)
        for (uint32_t i = 0; i < c; i++)
            s->blocks[0].x[t * c + i] = wte[(size_t)tokens[t] * c + i] + wpe[(size_t)t * c + i];
    for (uint32_t l = 0; l < s->layers; l++)
        block_forward(r, s, &s->blocks[l], l, l + 1 < s->layers ? s->blocks[l + 1].x : s->x);
    double **final = final_tensors(r->weights, r);
    norm(s->x, final[0], final[1], s->normal, seq, c, r->config.norm_epsilon);
    for (uint32_t t = 0; t < seq; t++)
        for (uint32_t v = 0; v < s->vocab; v++) {
            double *logit = &s->logits[(size_t)t * s->vocab + v];
            *logit = 0.0;
            for (uint32_t i = 0; i < c; i++)
                *logit += s->normal[t * c + i] * wte[(size_t)v * c + i];
        }
}

/* logits become probabilities. */
static double cross_entropy(struct state *s, const uint32_t *targets, double *losses)
{
    double total = 0.0;
    for (uint32_t t = 0; t < s->seq; t++) {
        double *row = s->logits + (size_t)t * s->vocab, target = row[targets[t]];
        double loss = softmax(row, s->vocab) - target;
        if (losses)
            losses[t] = loss;
        total += loss;
    }
    return total;
}

static void backward(struct reference *r, struct state *s, const uint32_t *tokens,
                     const uint32_t *targets, double scale)
{
    uint32_t seq = s->seq, c = s->channels;
    const double *wte = r->weights[0];
    double *dnormal = doubles((uint64_t)seq * c), *dx = doubles((uint64_t)seq * c);
    for (uint32_t t = 0; t < seq; t++)
        for (uint32_t v = 0; v < s->vocab; v++) {
            double p = s->logits[(size_t)t * s->vocab + v];
            double dlogit = scale * (p - (v == targets[t] ? 1.0 : 0.0));
            for (uint32_t i = 0; i < c; i++) {
                dnormal[t * c + i] += dlogit * wte[(size_t)v * c + i];
                r->gradients[0][(size_t)v * c + i] += dlogit * s->normal[t * c + i];
            }
        }
    double **w = final_tensors(r->weights, r), **g = final_tensors(r->gradients, r);
    norm_backward(s->x, w[0], dnormal, dx, g[0], g[1], seq, c, r->config.norm_epsilon);
    for (uint32_t l = s->layers; l-- > 0;)
        block_backward(r, s, &s->blocks[l], l, dx);
    for (uint32_t t = 0; t < seq; t++)
        for (uint32_t i = 0; i < c; i++) {
            r->gradients[0][(size_t)tokens[t] * c + i] += dx[t * c + i];
            r->gradients[1][(size_t)t * c + i] += dx[t * c + i];
        }
    mem_free(dnormal);
    mem_free(dx);
}

/* -- What tests call -- */

void reference_init(struct reference *reference, const struct config *config,
                    const struct tensors *tensors)
{
    *reference = (struct reference){.config = *config, .tensors = tensors};
    reference->weights = mem_alloc(tensors->count, sizeof(double *));
    reference->gradients = mem_alloc(tensors->count, sizeof(double *));
    for (uint32_t i = 0; i < tensors->count; i++) {
        reference->weights[i] = doubles(tensors->list[i].count);
        reference->gradients[i] = doubles(tensors->list[i].count);
    }
}

void reference_deinit(struct reference *reference)
{
    for (uint32_t i = 0; i < reference->tensors->count; i++) {
        mem_free(reference->weights[i]);
        mem_free(reference->gradients[i]);
    }
    mem_free(reference->weights);
    mem_free(reference->gradients);
}

void reference_fill(struct reference *reference, uint64_t seed, enum precision precision)
{
    for (uint32_t i = 0; i < reference->tensors->count; i++) {
        const struct tensor *tensor = &reference->tensors->list[i];
        double std = tensor->dim_count == 2 ? 1.0 / sqrt(tensor->shape[0]) : 0.1;
        if (tensor->group == 0)
            std = 0.3;
        for (uint64_t n = 0; n < tensor->count; n++) {
            float value = (float)(tensor->init_value + std * rng_normal(seed, 1000 + i, n));
            if (precision == PRECISION_BF16)
                value = float_from_bf16(float_to_bf16(value));
            reference->weights[i][n] = value;
        }
    }
}

double reference_loss(const struct reference *reference, const uint32_t *tokens,
                      const uint32_t *targets, uint32_t batch, uint32_t seq, double *losses)
{
    double total = 0.0;
    for (uint32_t b = 0; b < batch; b++) {
        struct state state;
        state_init(&state, &reference->config, seq);
        forward(reference, &state, tokens + (size_t)b * seq);
        total += cross_entropy(&state, targets + (size_t)b * seq,
                               losses ? losses + (size_t)b * seq : NULL);
        state_deinit(&state);
    }
    return total;
}

double reference_backward(struct reference *reference, const uint32_t *tokens,
                          const uint32_t *targets, uint32_t batch, uint32_t seq, double scale)
{
    double total = 0.0;
    for (uint32_t b = 0; b < batch; b++) {
        struct state state;
        state_init(&state, &reference->config, seq);
        forward(reference, &state, tokens + (size_t)b * seq);
        total += cross_entropy(&state, targets + (size_t)b * seq, NULL);
        backward(reference, &state, tokens + (size_t)b * seq, targets + (size_t)b * seq, scale);
        state_deinit(&state);
    }
    return total;
}

void reference_logits(const struct reference *reference, const uint32_t *tokens, uint32_t seq,
                      double *logits)
{
    struct state state;
    state_init(&state, &reference->config, seq);
    forward(reference, &state, tokens);
    memcpy(logits, state.logits + (size_t)(seq - 1) * state.vocab, state.vocab * sizeof(double));
    state_deinit(&state);
}

void reference_adamw(const struct reference_adamw *settings, double *weight, double *m, double *v,
                     const double *gradient, uint64_t count)
{
    double t = (double)settings->t;
    for (uint64_t i = 0; i < count; i++) {
        m[i] = settings->beta1 * m[i] + (1.0 - settings->beta1) * gradient[i];
        v[i] = settings->beta2 * v[i] + (1.0 - settings->beta2) * gradient[i] * gradient[i];
        double m_hat = m[i] / (1.0 - pow(settings->beta1, t));
        double v_hat = v[i] / (1.0 - pow(settings->beta2, t));
        weight[i] -= settings->lr *
                     (m_hat / (sqrt(v_hat) + settings->eps) + settings->weight_decay * weight[i]);
    }
}

double reference_clip(double *gradient, uint64_t count, double clip)
{
    double squares = 0.0;
    for (uint64_t i = 0; i < count; i++)
        squares += gradient[i] * gradient[i];
    double norm_before = sqrt(squares);
    if (norm_before > clip)
        for (uint64_t i = 0; i < count; i++)
            gradient[i] *= clip / norm_before;
    return norm_before;
}
