/* spillway eval: the loss of a trained model on the validation part of prepared data. */
#include "core/args.h"
#include "core/base.h"
#include "io/dataset.h"
#include "offload/infer.h"
#include "tools/commands.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

struct eval {
    const char *run, *model, *data, *precision;
    uint64_t seq, batch, steps;
    struct infer infer;
    struct dataset dataset;
};

/* Losses are per token, so numbers of another tokenizer would compare to nothing. */
static int check_data(const struct eval *eval, struct err *err)
{
    if (!eval->dataset.has_val)
        return err_set(err, ERR_INPUT,
                       "%s has no validation data: prepare it with --val-fraction above 0",
                       eval->data);
    if (eval->dataset.tokenizer_hash != bpe_hash(eval->infer.bpe))
        return err_set(err, ERR_INPUT,
                       "the data in %s was made with another tokenizer than that of the model in "
                       "%s: prepare the text again with `spillway prep TEXT --tokenizer %s`",
                       eval->data, eval->infer.model.dir, eval->infer.model.dir);
    return 0;
}

static void print_result(const struct eval *eval, const struct infer_evaluation *e)
{
    printf("val loss    %12.6f  (nats per token)\n", e->loss);
    printf("perplexity  %12.3f\n", exp(e->loss));
    printf("tokens      %12" PRIu64 "  (%" PRIu64 " x %u sequences of %u)\n", e->token_count,
           e->steps, e->batch * e->accum, e->seq);
    printf("precision   %12s\n", eval->infer.precision == PRECISION_BF16 ? "bf16" : "fp32");
    if (eval->infer.model.is_run)
        printf("commit      %12" PRIu64 "  (step)\n", eval->infer.step);
}

static int run(struct eval *eval, struct err *err)
{
    int result = dataset_open(&eval->dataset, eval->data, err);
    if (result == 0)
        result = infer_open(&eval->infer, eval->run, eval->model, eval->precision, err);
    if (result == 0)
        result = check_data(eval, err);
    struct infer_evaluation evaluation = {
        .shard = &eval->dataset.val,
        .seq = eval->seq ? (uint32_t)eval->seq : eval->infer.model.seq,
        .batch = eval->batch ? (uint32_t)eval->batch : eval->infer.model.batch,
        .accum = eval->infer.model.accum,
        .steps = eval->steps,
    };
    if (result == 0)
        result = infer_evaluate(&eval->infer, &evaluation, err);
    if (result == 0)
        print_result(eval, &evaluation);
    infer_close(&eval->infer);
    dataset_close(&eval->dataset);
    return result;
}

static int check_options(const struct eval *eval, struct err *err)
{
    if (!eval->run == !eval->model)
        return err_set(err, ERR_USAGE, "give one of --run RUN and --model HF_DIR");
    if (!eval->data)
        return err_set(err, ERR_USAGE,
                       "--data is missing: --data DIR, a folder made by 'spillway prep'");
    if (eval->seq > UINT32_MAX || eval->batch > UINT32_MAX || eval->steps > UINT32_MAX)
        return err_set(err, ERR_USAGE, "--seq, --batch and --steps are at most %u", UINT32_MAX);
    return 0;
}

int eval_main(int argc, char **argv)
{
    struct eval eval = {0};
    const struct args_option options[] = {
        {"run", ARGS_STRING, &eval.run, "RUN",
         "a run's folder; its last commit is read, also while it is being trained", NULL},
        {"model", ARGS_STRING, &eval.model, "HF_DIR", "or a Hugging Face folder", NULL},
        {"data", ARGS_STRING, &eval.data, "DIR",
         "a folder made by 'spillway prep' with the model's tokenizer", NULL},
        {"seq", ARGS_U64, &eval.seq, "T", "tokens in a sequence (default: as trained)", NULL},
        {"batch", ARGS_U64, &eval.batch, "B", "sequences at a time (default: as trained)", NULL},
        {"steps", ARGS_U64, &eval.steps, "N",
         "steps of the training's size; train's val_loss is that of the first 8 (default: all of "
         "the validation data)",
         NULL},
        {"precision", ARGS_STRING, &eval.precision, "bf16|fp32",
         "of the computation (default: that of the training)", NULL},
    };
    struct args_command args = {
        .name = "eval",
        .summary = "Measures a model's loss on the validation data.",
        .usage = "(--run RUN | --model HF_DIR) --data DIR [options]",
        .example = "spillway eval --run run --data data",
        .options = options,
        .option_count = ARRAY_COUNT(options),
    };
    struct err err = {0};
    int result = args_parse(&args, argc, argv, &err);
    if (result == 0)
        result = check_options(&eval, &err);
    if (result == 0)
        result = run(&eval, &err);
    return commands_status(result, &err);
}
