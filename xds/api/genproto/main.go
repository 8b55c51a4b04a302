// Command genproto generates the Go code of the protobuf definitions below the
// working directory. It refuses a protoc other than the one that the committed
// code was made with, because generated files name their compiler's version.
package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// protocVersion is that of Debian 12's package protobuf-compiler.
const protocVersion = "libprotoc 3.21.12"

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatalf("genproto: %v", err)
	}
}

func run() error {
	version, err := exec.Command("protoc", "--version").Output()
	if err != nil {
		return fmt.Errorf("run protoc (Debian package protobuf-compiler): %w", err)
	}
	if got := strings.TrimSpace(string(version)); got != protocVersion {
		return fmt.Errorf("protoc is %q, want %q (Debian 12, package protobuf-compiler)", got, protocVersion)
	}
	dir, err := os.MkdirTemp("", "genproto")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	plugin := filepath.Join(dir, "protoc-gen-go")
	if err := command("go", "build", "-o", plugin, "google.golang.org/protobuf/cmd/protoc-gen-go"); err != nil {
		return err
	}
	files, err := filepath.Glob("sluice/v1/*.proto")
	if err != nil {
		return err
	}
	args := []string{"--plugin=" + plugin, "--go_out=.", "--go_opt=paths=source_relative", "-I", "."}
	return command("protoc", append(args, files...)...)
}

func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(append([]string{name}, args...), " "), err)
	}
	return nil
}
