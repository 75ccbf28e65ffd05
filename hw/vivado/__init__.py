"""From a board's design to the vendor's tool and back: constraints, scripts, the run itself, its reports."""
