// Runs every case in processes of its own, in several schedules, and compares what was noticed with what should be.
//   emu_check [-v] [part of a case's name]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

#include "emu_check.hpp"
#include "emu_control.h"

#if defined(EMU_TSAN)
static const char mode[] = "TSan";
static const char *expected_notice(const Case &c) { return c.tsan; }
#elif defined(EMU_ASAN)
static const char mode[] = "ASan + UBSan";
static const char *expected_notice(const Case &c) { return c.asan; }
#else
static const char mode[] = "plain";
static const char *expected_notice(const Case &c) { return c.plain; }
#endif

// The reports' kinds are enough; symbols cost most of the time.
extern "C" const char *__tsan_default_options() { return "symbolize=0:halt_on_error=1"; }
extern "C" const char *__asan_default_options() { return "symbolize=0:detect_leaks=0"; }
extern "C" const char *__ubsan_default_options() { return "symbolize=0"; }

static const struct emu_schedule schedules[] = {
    {EMU_LINEAR, 1, 1, 1, 0}, {EMU_REVERSE, 1, 1, 1, 0}, {EMU_RANDOM, 1, 2, 1, 0}, {EMU_LINEAR, 1, 3, 1, 0},
    {EMU_RANDOM, 2, 1, 2, 0},
};

static std::string output_of_child(const Case &c, struct emu_schedule schedule)
{
    int ends[2];
    if (pipe(ends))
        abort();
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        alarm(30);
        char said[200];
        emu_set_schedule(schedule);
        run_case(c, said, sizeof said);
        puts(said);
        fflush(stdout);
        _exit(0);
    }
    close(ends[1]);
    std::string text;
    char part[4096];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;)
        text.append(part, static_cast<size_t>(n));
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    if (text.empty())
        text = "died silently, status " + std::to_string(status);
    return text;
}

static std::string notice_in(const std::string &text)
{
    const size_t emulator = text.find("EMULATOR ");
    if (text.find("data race") != std::string::npos)
        return "race";
    if (emulator != std::string::npos)
        return text.substr(emulator + 9, text.find_first_of(" :,\n", emulator + 9) - emulator - 9);
    if (text.find("AddressSanitizer") != std::string::npos)
        return "address";
    if (text.find("runtime error") != std::string::npos)
        return "undefined";
    if (text.find("nan ") == 0 || text.find("wrong ") == 0)
        return "results";
    return text.find("done ") == 0 ? "-" : text.substr(0, 40);
}

// The first notice of any schedule; other results in another schedule are one, too.
static std::string noticed(const Case &c, bool all_schedules, std::string &said)
{
    std::string first;
    const size_t n = all_schedules ? sizeof schedules / sizeof *schedules : 4;
    for (size_t i = 0; i < n; i++) {
        said = output_of_child(c, schedules[i]);
        const std::string notice = notice_in(said);
        if (notice != "-")
            return notice;
        if (first.empty())
            first = said;
        else if (first != said)
            return "results";
    }
    return "-";
}

static int check(const Case *cases, const char *filter, bool verbose, int &count)
{
    int failures = 0;
    for (const Case *c = cases; c->name; c++) {
        if (filter && !strstr(c->name, filter))
            continue;
        const char *expected = expected_notice(*c);
        std::string said;
        const std::string notice = noticed(*c, !expected, said);
        const bool right = notice == (expected ? expected : "-");
        count++;
        failures += !right;
        if (verbose || !right)
            printf("%s: %-40s %s%s%s\n%s", mode, c->name, notice.c_str(), right ? "" : ", but expected: ",
                   right ? "" : expected ? expected : "-", said.c_str());
    }
    return failures;
}

int main(int argc, char **argv)
{
    const bool verbose = argc > 1 && !strcmp(argv[1], "-v");
    const char *filter = argc > 1 + verbose ? argv[1 + verbose] : nullptr;
    for (const Case *c = planted_cases; c->name; c++) {
        if (!strcmp(c->plain, "-") && !strcmp(c->asan, "-") && !strcmp(c->tsan, "-"))
            return printf("%s: no mode is expected to notice it\n", c->name), 1;
    }
    int planted = 0, correct = 0;
    int failures = check(planted_cases, filter, verbose, planted) + check(correct_cases, filter, verbose, correct);
    if (!filter)
        failures += check_runtime() + check_meter();
    printf("emulator, %s: %d planted bugs, %d correct kernels, runtime and meter: %d failures\n", mode, planted, correct, failures);
    return failures != 0 || planted + correct == 0;
}
