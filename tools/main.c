/* main: finds the command that is asked for and hands over; --help, --version. */
#include "core/base.h"
#include "core/err.h"
#include "tools/commands.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct command {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"prep", prep_main, "make tokens of text"},
    {"data", data_main, "show what is in prepared data"},
    {"train", train_main, "train a model, within the budgets given"},
    {"plan", plan_main, "say what train would do, without doing it"},
    {"sweep", sweep_main, "say what to buy: step times over lists of parts"},
    {"sample", sample_main, "let a trained model write"},
    {"eval", eval_main, "measure a model's loss on the validation data"},
    {"export", export_main, "write a run as a Hugging Face folder"},
    {"report", report_main, "make a page of a run: loss, speed, memory, lanes"},
    {"bench", bench_main, "measure this machine, so that predictions are about it"},
    {"devices", devices_main, "list what there is to compute on"},
    {"check", check_main, "verify every checksum of a run or of prepared data"},
};

static void print_help(FILE *to)
{
    fprintf(to, "Usage: spillway COMMAND [options]\n\n"
                "Trains GPT models that are bigger than the memory of the machine.\n\n");
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++)
        fprintf(to, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fprintf(to, "\n`spillway help COMMAND` tells the options of one. To begin with:\n\n"
                "  spillway prep novels/ --out data --vocab-size 16384\n"
                "  spillway train --model gpt-tiny --data data --out run --steps 200\n"
                "  spillway sample --run run --prompt \"Once\"\n");
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

/* Letters that two words share in order (their longest common subsequence), for a hint only: words
 * longer than 15 letters share none. */
static size_t shared_letters(const char *a, const char *b)
{
    size_t best[16][16] = {{0}};
    size_t a_length = strlen(a), b_length = strlen(b);
    if (a_length > 15 || b_length > 15)
        return 0;
    for (size_t i = 1; i <= a_length; i++)
        for (size_t j = 1; j <= b_length; j++)
            best[i][j] =
                a[i - 1] == b[j - 1] ? best[i - 1][j - 1] + 1 : MAX(best[i - 1][j], best[i][j - 1]);
    return best[a_length][b_length];
}

static int unknown_command(const char *name)
{
    const struct command *nearest = NULL;
    size_t most = strlen(name) / 2;
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++) {
        size_t shared = shared_letters(name, commands[i].name);
        if (shared > most && 2 * shared > strlen(commands[i].name)) {
            most = shared;
            nearest = &commands[i];
        }
    }
    fprintf(stderr, "spillway: there is no command \"%.40s\"", name);
    if (nearest != NULL)
        fprintf(stderr, "; did you mean \"%s\"?\n", nearest->name);
    else
        fprintf(stderr, "; `spillway --help` lists them\n");
    return 2;
}

static int run_command(const char *name, int argc, char **argv)
{
    const struct command *command = find_command(name);
    return command == NULL ? unknown_command(name) : command->main(argc, argv);
}

/* Where a standard stream is closed the next file to be opened would take its number, and with it
 * what is meant for a person. Tested by tests/system/abuse.sh. */
static void open_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            fatal("cannot open /dev/null in the place of a closed standard stream");
}

/* A result that could not be written is no result, whatever the command made of it. A reader that
 * has seen enough is no fault. */
static int finish(int status)
{
    errno = 0;
    if ((fflush(stdout) == 0 && !ferror(stdout)) || errno == EPIPE)
        return status;
    fprintf(stderr, "spillway: cannot write to standard output: %s\n",
            strerror(errno ? errno : EIO));
    return status ? status : 1;
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    const char *name = argv[1];
    bool asks_help = strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
    if (strcmp(name, "--version") == 0) {
        printf("spillway %s\n", SPILLWAY_VERSION);
        return 0;
    }
    if (asks_help || (strcmp(name, "help") == 0 && argc == 2)) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(name, "help") == 0) {
        char *help[] = {argv[2], "--help", NULL};
        return run_command(argv[2], 2, help);
    }
    return run_command(name, argc - 1, argv + 1);
}

/* Touching a page of a mapped file that is no longer there: somebody made the file shorter, or the
 * drive cannot read it. No call failed that could say so. */
static void on_bus_error(int number)
{
    static const char sentence[] =
        "spillway: a file was made shorter while it was being read, or its drive cannot read it: "
        "see that nothing writes to the token files, then run the command again\n";
    (void)number;
    ssize_t written = write(STDERR_FILENO, sentence, sizeof(sentence) - 1);
    (void)written;
    _exit(1);
}

int main(int argc, char **argv)
{
    open_standard_streams();
    /* A limit on the size of files is told like a full disk. */
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGBUS, on_bus_error);
    return finish(run(argc, argv));
}
