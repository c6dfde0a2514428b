package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsm-signer/integration/must"
)

// The size of a chart and of the area that its lines are in, in pixels.
const (
	chartWidth, chartHeight = 720, 260
	areaX, areaY            = 60, 30
	areaWidth, areaHeight   = chartWidth - areaX - 20, chartHeight - areaY - 40
)

// A line of a chart has points of seconds and values.
type line struct {
	name, color string
	points      [][2]float64
}

// drawStorm draws both runs of a storm into docs/performance.svg if results are recorded.
func drawStorm(b *testing.B, product, limit timing) {
	b.Helper()
	if os.Getenv(resultsVariable) == "" {
		return
	}
	lines := func(value func(timing, int) float64) []line {
		return []line{
			{signer, "#0b6bcb", sample(product, value)}, {withRead, "#888", sample(limit, value)},
		}
	}
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" `+
		`font-family="sans-serif" font-size="12">`+"\n<rect width=\"100%%\" height=\"100%%\" "+
		`fill="#fff"/>`+"\n", chartWidth, 2*chartHeight)
	draw(&svg, 0, "certificates", lines(func(_ timing, i int) float64 { return float64(i + 1) }))
	draw(&svg, chartHeight, "latency of the certificates that came then, in seconds",
		lines(func(t timing, i int) float64 { return t[i].latency.Seconds() }))
	svg.WriteString("</svg>\n")
	path := filepath.Join("..", "..", "docs", "performance.svg")
	must.OK(b, os.WriteFile(path, []byte(svg.String()), 0o644))
}

// sample returns about a hundred points of a run, from its start to its end.
func sample(t timing, value func(t timing, i int) float64) (points [][2]float64) {
	step := max(1, len(t)/100)
	for i := step - 1; i < len(t); i += step {
		points = append(points, [2]float64{t[i].at.Seconds(), value(t, i)})
	}
	return points
}

// draw draws one chart, whose upper edge is at y, with axes that begin at zero.
func draw(svg *strings.Builder, y int, title string, lines []line) {
	var most [2]float64
	for _, l := range lines {
		for _, p := range l.points {
			most = [2]float64{max(most[0], p[0]), max(most[1], p[1])}
		}
	}
	fmt.Fprintf(svg, `<g transform="translate(0 %d)"><text x="%d" y="20">%s</text>`+"\n", y,
		areaX, title)
	fmt.Fprintf(svg, `<path d="M%d %dV%dH%d" fill="none" stroke="#444"/>`+"\n", areaX, areaY,
		areaY+areaHeight, areaX+areaWidth)
	fmt.Fprintf(svg, `<text x="%d" y="%d" text-anchor="end">%.4g</text>`+"\n", areaX-6, areaY+4,
		most[1])
	fmt.Fprintf(svg, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", areaX+areaWidth,
		areaY+areaHeight+16, time.Duration(most[0]*float64(time.Second)).Round(time.Second/10))
	for i, l := range lines {
		fmt.Fprintf(svg, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, l.color)
		for _, p := range l.points {
			fmt.Fprintf(svg, "%.1f,%.1f ", areaX+p[0]/most[0]*areaWidth,
				areaY+areaHeight-p[1]/most[1]*areaHeight)
		}
		fmt.Fprintf(svg, `"/><text x="%d" y="%d" fill="%s">%s</text>`+"\n", areaX+10+i*140,
			areaY+areaHeight+30, l.color, l.name)
	}
	svg.WriteString("</g>\n")
}
