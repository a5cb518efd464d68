"""The report of a run, one HTML file: `reading` reads the run folder, `figures` selects the charts, `plots` draws them,
`page` renders the page. All figures come from the artifacts; nothing that a stage reported is computed again."""
