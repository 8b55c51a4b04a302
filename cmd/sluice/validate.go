package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/gateway/check"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/watch"
)

// validation is the answer of `sluice validate`.
type validation struct {
	// Problems are what is wrong in the files by themselves.
	Problems []validationProblem `json:"problems"`
	// Objects are those that would get conditions.
	Objects []validatedObject `json:"objects"`
	// Read counts the objects that are right by themselves.
	Read int `json:"read"`
}

type validationProblem struct {
	Severity string `json:"severity"` // error or warning
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`
	Document int    `json:"document,omitempty"`
	Object   string `json:"object,omitempty"`
	Field    string `json:"field,omitempty"`
	Text     string `json:"text"`
	Cure     string `json:"cure,omitempty"`
	whole    kube.Problem
}

type validatedObject struct {
	Kind       string               `json:"kind"`
	Namespace  string               `json:"namespace,omitempty"`
	Name       string               `json:"name"`
	File       string               `json:"file"`
	Line       int                  `json:"line,omitempty"`
	Grade      check.Grade          `json:"grade"`
	Conditions []validatedCondition `json:"conditions"`
	key        kube.Key
}

type validatedCondition struct {
	Of      string      `json:"of,omitempty"`
	Type    string      `json:"type"`
	Status  string      `json:"status"`
	Reason  string      `json:"reason"`
	Message string      `json:"message"`
	Grade   check.Grade `json:"grade"`
}

func (a *app) validateCommand() *cobra.Command {
	var out format
	var files []string
	var alone bool
	cmd := &cobra.Command{
		Use:   "validate -f FILE... [FILE]...",
		Short: "Check files of Kubernetes and Gateway API objects without a node",
		Long: `Check files as an API server and a node would: YAML and JSON, the schemas, defaults
and rules of the Gateway API's standard channel, and those of the core objects that
Sluice uses. Then the objects are put together, and the table shows the conditions
that they would get: backends and certificates that are missing, references without
ReferenceGrant, listeners and routes in each other's way, values that are not served.

FILE is a file, a folder (read with all below it), or - for standard input. All are
taken together, as one node's configuration.

The exit code is 3 if anything is wrong; warnings do not count.`,
		Example: `  sluice validate -f shop.yaml
  sluice validate -f config/ -o json
  kustomize build . | sluice validate -f -
  sluice validate -f one-route.yaml --alone`,
		RunE: func(cmd *cobra.Command, args []string) error {
			paths := slices.Concat(files, args)
			if len(paths) == 0 {
				return usagef(cmd, "no file: name them with -f")
			}
			v, err := a.validate(paths, alone)
			if err != nil {
				return err
			}
			if err := a.print(out, v, func(w io.Writer, colored bool) error { return writeValidation(w, colored, v) }); err != nil {
				return err
			}
			if wrong := v.wrong(); wrong > 0 {
				return answerNo("%d of the objects are wrong.", wrong)
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder or - (standard input); may be repeated")
	cmd.Flags().BoolVar(&alone, "alone", false, "check each object by itself, not what it refers to")
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

// validate reads the files and asks what would become of the objects.
func (a *app) validate(paths []string, alone bool) (*validation, error) {
	change, places, err := watch.ReadOnce(watch.Config{
		// Addresses are a node's own matter: any will do.
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd96::/108")},
	}, paths, a.stdin)
	if err != nil {
		return nil, err
	}
	v := &validation{Read: len(change.Upserts), Problems: []validationProblem{}, Objects: []validatedObject{}}
	for _, f := range change.Files {
		for _, p := range f.Problems {
			r := validationProblem{Severity: "error", File: p.File, Line: p.Line, Document: p.Document, Field: p.Field, Text: p.Text, Cure: p.Cure, whole: p}
			if p.Warning {
				r.Severity = "warning"
			}
			if !p.Object.IsZero() {
				r.Object = p.Object.String()
			}
			v.Problems = append(v.Problems, r)
		}
	}
	if alone {
		return v, nil
	}
	objects, err := check.Objects(change)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		r := validatedObject{
			Kind: string(o.Key.Kind), Namespace: o.Key.Namespace, Name: o.Key.Name,
			File: places[o.Key].File, Line: places[o.Key].Line, Grade: o.Grade, key: o.Key,
		}
		for _, c := range o.Conditions {
			r.Conditions = append(r.Conditions, validatedCondition(c))
		}
		v.Objects = append(v.Objects, r)
	}
	return v, nil
}

// wrong counts the objects that have an error or a condition that is one. An error
// that belongs to no object counts as one.
func (v *validation) wrong() int {
	objects, others := map[string]bool{}, 0
	for _, p := range v.Problems {
		switch {
		case p.Severity != "error":
		case p.Object == "":
			others++
		default:
			objects[p.Object] = true
		}
	}
	for _, o := range v.Objects {
		if o.Grade == check.Wrong {
			objects[o.key.String()] = true
		}
	}
	return len(objects) + others
}

func writeValidation(w io.Writer, colored bool, v *validation) error {
	t := &table{header: []string{"OBJECT", "FILE", "STATUS"}}
	var remarks []string
	for _, p := range v.Problems {
		remarks = append(remarks, p.Severity+": "+p.whole.Error())
	}
	shown := map[string]bool{}
	for _, p := range v.Problems {
		if p.Severity == "error" && p.Object != "" && !shown[p.Object] {
			shown[p.Object] = true
			t.add(p.Object, fmt.Sprintf("%s:%d", p.File, p.Line), cell{"refused", red})
		}
	}
	for _, o := range v.Objects {
		place := fmt.Sprintf("%s:%d", o.File, o.Line)
		status := cell{"ok", green}
		for _, c := range o.Conditions {
			if c.Grade == check.OK {
				continue
			}
			of := ""
			if c.Of != "" {
				of = c.Of + ": "
			}
			if status.text == "ok" {
				status = cell{of + c.Type + "=" + c.Status + " " + c.Reason, yellow}
			}
			if o.Grade == check.Wrong {
				status.color = red
			}
			severity := "error"
			if c.Grade == check.Warning {
				severity = "warning"
			}
			// Several conditions may say the same of one place.
			remark := fmt.Sprintf("%s: %s: %s: %s%s: %s", severity, place, o.key, of, c.Reason, c.Message)
			if !slices.Contains(remarks, remark) {
				remarks = append(remarks, remark)
			}
		}
		t.add(o.key.String(), place, status)
	}
	if len(t.rows) > 0 {
		if err := writeWithRemarks(w, colored, t, remarks); err != nil {
			return err
		}
	} else {
		for _, r := range remarks {
			fmt.Fprintln(w, printable(r))
		}
	}
	_, err := fmt.Fprintf(w, "\n%d objects read, %d problems in files.\n", v.Read, len(v.Problems))
	return err
}
