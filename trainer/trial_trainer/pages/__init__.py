"""Raw product pages to lines, labels and rules' answers."""
