package main

import (
	"github.com/spf13/cobra"
)

func (a *app) completionCommand(root *cobra.Command) *cobra.Command {
	scripts := map[string]func() error{
		"bash": func() error { return root.GenBashCompletionV2(a.stdout, true) },
		"zsh":  func() error { return root.GenZshCompletion(a.stdout) },
		"fish": func() error { return root.GenFishCompletion(a.stdout, true) },
	}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Write the script that lets a shell complete commands and names",
		Long: `Write the script that lets a shell complete commands, flags, and the names of the
workloads, services, routes and gateways of the running node.`,
		Example: `  source <(sluice completion bash)
  sluice completion bash > /etc/bash_completion.d/sluice
  sluice completion zsh > "${fpath[1]}/_sluice"
  sluice completion fish > ~/.config/fish/completions/sluice.fish`,
		Args:      arguments(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE:      func(_ *cobra.Command, args []string) error { return scripts[args[0]]() },
	}
}
