// Package dashboard makes the Grafana dashboard and the Prometheus alerts of Sluice,
// which are under charts/sluice.
//
// It is pure: a description of panels and rules in, JSON and YAML out. Its tests parse
// every expression with Prometheus' own parser and hold each metric and label against
// the reference of all metrics.
package dashboard

//go:generate go run ./gendashboard -dir ../../charts/sluice
