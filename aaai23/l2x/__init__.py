"""Learning to Explain on BeerAdvocate: select K words of a review and predict its rating from them alone."""
