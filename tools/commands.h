/*
 * commands: the entries of the program's commands, one file each, called by tools/main.c with
 * argv[0] being the command's name.
 *
 * Each returns the program's exit status: 0, 2 for bad usage, or 1 after one sentence on stderr
 * that says what is wrong and what to do.
 */
#ifndef SPILLWAY_TOOLS_COMMANDS_H
#define SPILLWAY_TOOLS_COMMANDS_H

#define SPILLWAY_VERSION "0.1.0"

struct err;

/* The exit status for a result: 0 for 0 and 1 (help was printed); else prints err's sentence. */
int commands_status(int result, const struct err *err);

int prep_main(int argc, char **argv);
int data_main(int argc, char **argv);
int train_main(int argc, char **argv);
int sample_main(int argc, char **argv);
int eval_main(int argc, char **argv);
int export_main(int argc, char **argv);
int check_main(int argc, char **argv);
int devices_main(int argc, char **argv);
int plan_main(int argc, char **argv);
int sweep_main(int argc, char **argv);
int report_main(int argc, char **argv);
int bench_main(int argc, char **argv);

#endif
