"""Sessions and artifacts to one offline HTML file each."""
