#include "tests/shared/pieces.h"
#include "core/mem.h"
#include <math.h>

/* -- Norms -- */

struct statistics {
    double mean, deviation; /* deviation is not its reciprocal here */
};

static struct statistics measure(const struct pieces_norm *a, const double *x)
{
    struct statistics s = {0.0, 0.0};
    double squares = 0.0;
    for (uint32_t i = 0; i < a->columns && a->layer; i++)
        s.mean += x[i] / a->columns;
    for (uint32_t i = 0; i < a->columns; i++)
        squares += (x[i] - s.mean) * (x[i] - s.mean) / a->columns;
    s.deviation = sqrt(squares + a->epsilon);
    return s;
}

void pieces_norm(const struct pieces_norm *args, double *y)
{
    for (uint32_t r = 0; r < args->rows; r++) {
        uint64_t row = (uint64_t)r * args->columns;
        struct statistics s = measure(args, args->x + row);
        for (uint32_t i = 0; i < args->columns; i++)
            y[row + i] = (args->x[row + i] - s.mean) / s.deviation * args->weight[i] +
                         (args->layer ? args->bias[i] : 0.0);
    }
}

/* Through the deviation and, where there is one, the mean, by the chain rule. */
void pieces_norm_backward(const struct pieces_norm *args, const double *dy, double *dx,
                          double *dweight, double *dbias)
{
    for (uint32_t r = 0; r < args->rows; r++) {
        uint64_t row = (uint64_t)r * args->columns;
        const double *x = args->x + row, *g = dy + row;
        struct statistics s = measure(args, x);
        double dmean = 0.0, ddeviation = 0.0;
        for (uint32_t i = 0; i < args->columns; i++) {
            double centred = x[i] - s.mean, scaled = g[i] * args->weight[i];
            dweight[i] += g[i] * centred / s.deviation;
            dbias[i] += g[i];
            dmean -= scaled / s.deviation;
            ddeviation -= scaled * centred / (s.deviation * s.deviation);
        }
        for (uint32_t i = 0; i < args->columns; i++)
            dx[row + i] += g[i] * args->weight[i] / s.deviation +
                           ddeviation * (x[i] - s.mean) / s.deviation / args->columns +
                           (args->layer ? dmean / args->columns : 0.0);
    }
}

/* -- Attention -- */

static const double *key_of(const struct pieces_attention *a, const double *base, uint32_t head,
                            uint32_t t)
{
    return base + (uint64_t)t * a->kv_stride + head / (a->heads / a->kv_heads) * a->depth;
}

static double dot(const double *a, const double *b, uint32_t count)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* p[0..t] of query t; returns log sum exp. */
static double probabilities(const struct pieces_attention *a, uint32_t head, uint32_t t, double *p)
{
    const double *q = a->q + (uint64_t)t * a->q_stride + head * a->depth;
    double most = -INFINITY, sum = 0.0;
    for (uint32_t u = 0; u <= t; u++) {
        p[u] = dot(q, key_of(a, a->k, head, u), a->depth) / sqrt(a->depth);
        most = fmax(most, p[u]);
    }
    for (uint32_t u = 0; u <= t; u++)
        sum += exp(p[u] - most);
    for (uint32_t u = 0; u <= t; u++)
        p[u] = exp(p[u] - most) / sum;
    return most + log(sum);
}

void pieces_attention(const struct pieces_attention *args, double *out, double *log_sum)
{
    double *p = mem_alloc(args->seq, sizeof(double));
    for (uint32_t h = 0; h < args->heads; h++)
        for (uint32_t t = 0; t < args->seq; t++) {
            double *o = out + (uint64_t)t * args->out_stride + h * args->depth;
            log_sum[(uint64_t)h * args->seq + t] = probabilities(args, h, t, p);
            for (uint32_t i = 0; i < args->depth; i++)
                o[i] = 0.0;
            for (uint32_t u = 0; u <= t; u++)
                for (uint32_t i = 0; i < args->depth; i++)
                    o[i] += p[u] * key_of(args, args->v, h, u)[i];
        }
    mem_free(p);
}

/* One query: its own gradient, and what it adds to keys and values. */
static void backward_query(const struct pieces_attention *a, uint32_t head, uint32_t t,
                           const double *dout, double *dq, double *dk, double *dv)
{
    double *p = mem_alloc(2 * a->seq, sizeof(double)), *dp = p + a->seq, mean = 0.0;
    const double *q = a->q + (uint64_t)t * a->q_stride + head * a->depth;
    const double *o = dout + (uint64_t)t * a->out_stride + head * a->depth;
    probabilities(a, head, t, p);
    for (uint32_t u = 0; u <= t; u++) {
        dp[u] = dot(o, key_of(a, a->v, head, u), a->depth);
        mean += p[u] * dp[u];
    }
    for (uint32_t u = 0; u <= t; u++) {
        uint64_t key = (uint64_t)(key_of(a, a->k, head, u) - a->k);
        double ds = p[u] * (dp[u] - mean) / sqrt(a->depth);
        for (uint32_t i = 0; i < a->depth; i++) {
            dq[(uint64_t)t * a->q_stride + head * a->depth + i] += ds * a->k[key + i];
            dk[key + i] += ds * q[i];
            dv[key + i] += p[u] * o[i];
        }
    }
    mem_free(p);
}

void pieces_attention_backward(const struct pieces_attention *args, const double *dout, double *dq,
                               double *dk, double *dv)
{
    for (uint32_t h = 0; h < args->heads; h++)
        for (uint32_t t = 0; t < args->seq; t++)
            backward_query(args, h, t, dout, dq, dk, dv);
}
