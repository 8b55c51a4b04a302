// Command mutants breaks one part at a time and checks that its test notices.
//
// Every *.yaml file beside it lists mutants: a text that occurs once in a source
// file, the text that breaks it, and the test that must fail then. The command
// copies the commit that is checked out into a temporary worktree, applies one
// mutant, runs its test there, puts the file back and goes on. A mutant is killed
// when the test itself failed; one that does not compile, or whose test passes or
// did not run at all, is reported, and the exit status is 1.
//
// It runs nothing in parallel, because tests of the kernel share the machine.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"
)

// Mutant is one way to break the code, and the test that has to notice.
type Mutant struct {
	Name    string `json:"name"`    // what is broken, in words
	File    string `json:"file"`    // the file, from the top of the repository
	Find    string `json:"find"`    // occurs exactly once in File
	Replace string `json:"replace"` // what stands there instead
	// Test are the arguments of go test, for example "./l7proxy -run ^TestX$".
	Test string `json:"test,omitempty"`
	// Demo is the title of the demo's step that must fail; instead of Test.
	Demo string `json:"demo,omitempty"`
	list string // the file that lists it
}

// read returns the mutants of every list in dir. The error names the list and
// the entry that is wrong.
func read(dir string) ([]Mutant, error) {
	lists, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var all []Mutant
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			return nil, err
		}
		var some []Mutant
		if err := yaml.UnmarshalStrict(text, &some); err != nil {
			return nil, fmt.Errorf("%s: %w", list, err)
		}
		for i, m := range some {
			m.list = filepath.Base(list)
			switch {
			case m.Name == "" || m.File == "" || m.Find == "":
				return nil, fmt.Errorf("%s: entry %d: name, file and find must be set", list, i+1)
			case m.Find == m.Replace:
				return nil, fmt.Errorf("%s: %q: replace is the same as find: nothing would break", list, m.Name)
			case (m.Test == "") == (m.Demo == ""):
				return nil, fmt.Errorf("%s: %q: set one of test and demo", list, m.Name)
			}
			all = append(all, m)
		}
	}
	return all, nil
}

// apply returns the text of m's file below top as it is and as m breaks it.
func (m Mutant) apply(top string) (before, after []byte, err error) {
	before, err = os.ReadFile(filepath.Join(top, m.File))
	if err != nil {
		return nil, nil, err
	}
	if n := bytes.Count(before, []byte(m.Find)); n != 1 {
		return nil, nil, fmt.Errorf("%s: %q: its text occurs %d times in %s: it must occur once", m.list, m.Name, n, m.File)
	}
	return before, bytes.Replace(before, []byte(m.Find), []byte(m.Replace), 1), nil
}

// commands are what has to run in the mutated tree, the last of them the test.
func (m Mutant) commands() [][]string {
	var all [][]string
	if strings.HasPrefix(m.File, "bpf/") {
		all = append(all, []string{"go", "generate", "./bpf"})
	}
	if m.Demo != "" {
		return append(all, []string{"make", "-s", "build"}, []string{"bin/demo"})
	}
	return append(all, append([]string{"go", "test", "-count=1", "-timeout=240s"}, strings.Fields(m.Test)...))
}

// verdict reads what the last command printed: nil if the mutant was killed.
func (m Mutant) verdict(out []byte, err error) error {
	var failed *exec.ExitError
	switch {
	case err == nil && bytes.Contains(out, []byte("no tests to run")):
		return errors.New("the test did not run: no test has that name")
	case err == nil:
		return errors.New("survived: the test passed")
	case !errors.As(err, &failed):
		return err
	case m.Demo != "" && !demoFailed(out, m.Demo):
		return errors.New("the demo ended without that step having failed")
	case m.Demo == "" && bytes.Contains(out, []byte("[build failed]")):
		return errors.New("the mutant does not compile")
	case m.Demo == "" && !bytes.Contains(out, []byte("--- FAIL")) && !bytes.Contains(out, []byte("panic:")):
		return errors.New("the test ended without a failure of its own")
	}
	return nil
}

// demoFailed reports whether a failed step of the demo's story has title in its line.
func demoFailed(out []byte, title string) bool {
	return bytes.Contains(out, []byte("✗ "+title+":"))
}

func main() {
	only := flag.String("only", "", "run only mutants whose list or name `matches` this regular expression")
	verbose := flag.Bool("v", false, "print what the tests print")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	bad, err := run(ctx, *only, *verbose)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	if bad > 0 {
		os.Exit(1)
	}
}

// run tries every mutant that matches only and returns how many were not killed.
func run(ctx context.Context, only string, verbose bool) (int, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return 0, fmt.Errorf("-only: %w", err)
	}
	all, err := read("mutants")
	if err != nil {
		return 0, err
	}
	tree, remove, err := worktree(ctx)
	if err != nil {
		return 0, err
	}
	defer remove()

	killed, bad := 0, 0
	for _, m := range all {
		if !match.MatchString(m.list) && !match.MatchString(m.Name) {
			continue
		}
		start := time.Now()
		out, err := try(ctx, m, tree)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if verbose || err != nil {
			os.Stdout.Write(out)
		}
		word := "killed"
		if err != nil {
			word = "NOT KILLED: " + err.Error()
			bad++
		} else {
			killed++
		}
		fmt.Printf("%-10s %s: %s (%.1f s) %s\n", strings.TrimSuffix(m.list, ".yaml"), m.Name, word, time.Since(start).Seconds(), m.Test+m.Demo)
	}
	fmt.Printf("mutants: %d killed, %d not\n", killed, bad)
	return bad, nil
}

// try applies m in tree, runs its test, and puts the tree back.
func try(ctx context.Context, m Mutant, tree string) ([]byte, error) {
	_, after, err := m.apply(tree)
	if err != nil {
		return nil, err
	}
	defer func() {
		if out, err := command(context.WithoutCancel(ctx), tree, "git", "checkout", "-q", "--", "."); err != nil {
			fmt.Fprintf(os.Stderr, "mutants: putting the tree back: %v\n%s", err, out)
		}
	}()
	if err := os.WriteFile(filepath.Join(tree, m.File), after, fs.FileMode(0o644)); err != nil {
		return nil, err
	}
	all := m.commands()
	for _, c := range all[:len(all)-1] {
		if out, err := command(ctx, tree, c...); err != nil {
			return out, fmt.Errorf("%s: %w: the mutant does not compile", strings.Join(c, " "), err)
		}
	}
	out, err := command(ctx, tree, all[len(all)-1]...)
	return out, m.verdict(out, err)
}

// worktree checks out HEAD into a new folder and returns it with what removes it.
func worktree(ctx context.Context) (string, func(), error) {
	dir, err := os.MkdirTemp("", "sluice-mutants-")
	if err != nil {
		return "", nil, err
	}
	tree := filepath.Join(dir, "tree")
	if out, err := command(ctx, ".", "git", "worktree", "add", "--detach", tree, "HEAD"); err != nil {
		return "", nil, fmt.Errorf("%w\n%s", err, out)
	}
	return tree, func() {
		if out, err := command(context.WithoutCancel(ctx), ".", "git", "worktree", "remove", "--force", tree); err != nil {
			fmt.Fprintf(os.Stderr, "mutants: %v\n%s", err, out)
		}
		_ = os.RemoveAll(dir)
	}, nil
}

// command runs argv in dir and returns what it printed on both outputs. When ctx
// ends, it is interrupted first, so that tests remove what they made.
func command(ctx context.Context, dir string, argv ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Dir = dir
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 20 * time.Second
	return c.CombinedOutput()
}
