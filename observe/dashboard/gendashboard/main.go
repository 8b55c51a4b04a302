// Command gendashboard writes the dashboard and the alerts into the folder of the
// chart.
package main

import (
	"flag"
	"log"
	"os"
	"path/filepath"

	"github.com/sluice-mesh/sluice/observe/dashboard"
)

func main() {
	dir := flag.String("dir", "", "the folder of the chart")
	flag.Parse()
	for name, content := range map[string]func() ([]byte, error){
		"dashboards/sluice.json": dashboard.Dashboard,
		"alerts/sluice.yaml":     dashboard.Alerts,
	} {
		b, err := content()
		if err != nil {
			log.Fatal(err)
		}
		path := filepath.Join(*dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
