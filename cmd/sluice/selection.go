package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/mesh"
)

// selection is which of a list's objects a person wants: those that the arguments
// name, as NAME or NAMESPACE/NAME, of the namespace of flag -n; all by default.
type selection struct {
	namespace string
}

func (s *selection) flags(a *app, cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.namespace, "namespace", "n", "", "only of this namespace")
	completeWith(cmd, "namespace", a.live(namespaceNames))
}

// pick returns the selected items. An argument that selects nothing is an answer
// of no, with the kind in its text.
func pick[T any](s *selection, kind string, args []string, items []T, name func(T) mesh.Name) ([]T, error) {
	found := make([]bool, len(args))
	var out []T
	for _, item := range items {
		n := name(item)
		if s.namespace != "" && n.Namespace != s.namespace {
			continue
		}
		selected := len(args) == 0
		for i, arg := range args {
			if arg == n.Name || arg == n.String() {
				selected, found[i] = true, true
			}
		}
		if selected {
			out = append(out, item)
		}
	}
	if i := slices.Index(found, false); i >= 0 {
		where := ""
		if s.namespace != "" {
			where = " in namespace " + s.namespace
		}
		return nil, answerNo("There is no %s %s%s.", kind, args[i], where)
	}
	if out == nil {
		out = []T{} // an empty list, not null, in JSON
	}
	return out, nil
}

// nothing tells on standard error that a list is empty, so that an empty table
// does not look like a failure.
func (a *app) nothing(n int, kind string) {
	if n == 0 {
		fmt.Fprintf(a.stderr, "No %s.\n", kind)
	}
}

// abridged joins at most three of the words and says how many more there are.
func abridged(words []string) string {
	const most = 3
	if len(words) <= most {
		return strings.Join(words, ",")
	}
	return fmt.Sprintf("%s,+%d", strings.Join(words[:most], ","), len(words)-most)
}
